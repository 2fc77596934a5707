"""TensorBoard and Weights & Biases, for those who ask for them."""
import argparse
import json
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, Protocol

import numpy as np
from PIL import Image

from ..errors import UserError, one_line
from ..files import write_complete
from ..run_folder import plain_options

RUN_IDS = 'trackers.json'
_PACKAGES = dict(log_wandb='wandb', log_tensorboard='tensorboard')


class Tracker(Protocol):
    """What a run tells a tracker. Values are placed by the number of updates done."""

    def add_values(self, values: Dict[str, float], update: int) -> None:
        """Add numbers, by names like `train/loss`."""

    def add_picture(self, name: str, path: Path, update: int) -> None:
        """Add a picture that was written to a file."""

    def close(self, completed: bool) -> None:
        """Hand over what was not yet written, and say whether the run came to its end."""


def check_trackers(options: argparse.Namespace) -> None:
    """Check that the packages of the trackers are there, before anything is done.

    Raises:
        UserError: One is missing, or an option is for a tracker that is not asked for.
    """
    for name, package in _PACKAGES.items():
        if getattr(options, name) and find_spec(package) is None:
            raise UserError(f'--{name.replace("_", "-")}: {package} is not installed; pip install {package}.')
    if not options.log_wandb:
        for name in ('wandb_project', 'wandb_tags', 'wandb_resume_id'):
            if getattr(options, name):
                raise UserError(f'--{name.replace("_", "-")} is for --log-wandb, which is not given.')


@contextmanager
def open_trackers(options: argparse.Namespace, folder: Path, update: int) -> Iterator[List[Tracker]]:
    """Open the trackers that were asked for, and close them with the block: an error that leaves it is told to them.

    Args:
        options: Options of the run.
        folder: Folder of the run.
        update: Number of updates done before; what was told of later ones is told again.

    Raises:
        UserError: A tracker cannot be started.
    """
    trackers: List[Tracker] = []
    completed = False
    try:
        if options.log_tensorboard:
            trackers.append(TensorBoard(folder / 'tensorboard', update))
        if options.log_wandb:
            trackers.append(WeightsAndBiases(options, folder))
        yield trackers
        completed = True
    finally:
        for tracker in trackers:
            tracker.close(completed)


class TensorBoard:
    """Event files for TensorBoard.

    Args:
        folder: Folder of the files.
        update: Number of updates done before; what is there of later ones is hidden.
    """

    def __init__(self, folder: Path, update: int):
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(str(folder), purge_step=update + 1 if update else None)

    def add_values(self, values: Dict[str, float], update: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, update)
        self.writer.flush()

    def add_picture(self, name: str, path: Path, update: int) -> None:
        with Image.open(path) as picture:
            self.writer.add_image(name, np.asarray(picture.convert('RGB')), update, dataformats='HWC')

    def close(self, completed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases. The run folder keeps its id, so that a run that goes on there does so here.

    Args:
        options: Options of the run.
        folder: Folder of the run.

    Raises:
        UserError: The run cannot be started, for want of an account for example.
    """

    def __init__(self, options: argparse.Namespace, folder: Path):
        import wandb
        self.wandb = wandb
        run_id = options.wandb_resume_id or (_read_run_ids(folder).get('wandb') if options.resume else None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.run = wandb.init(
                project=options.wandb_project,
                name=folder.name,
                tags=options.wandb_tags,
                config=plain_options(options),
                dir=str(folder),
                id=run_id or None,
                resume='must' if options.wandb_resume_id else 'allow' if run_id else None,
            )
            # a resumed run tells some updates again, which wandb's own count of steps does not allow
            self.run.define_metric('update')
            self.run.define_metric('*', step_metric='update')
        except Exception as e:  # its errors have many types, and none in common
            raise UserError(f'--log-wandb: {one_line(e)}') from e
        text = json.dumps(dict(wandb=self.run.id)) + '\n'
        write_complete(folder / RUN_IDS, lambda partial: partial.write_text(text))

    def add_values(self, values: Dict[str, float], update: int) -> None:
        self.run.log({**values, 'update': update})

    def add_picture(self, name: str, path: Path, update: int) -> None:
        self.run.log({name: self.wandb.Image(str(path)), 'update': update})

    def close(self, completed: bool) -> None:
        # without a code a run that failed, or was stopped, would be shown as finished
        self.run.finish(exit_code=0 if completed else 1)


def _read_run_ids(folder: Path) -> Dict[str, Any]:
    path = folder / RUN_IDS
    return json.loads(path.read_text()) if path.exists() else {}
