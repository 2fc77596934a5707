"""Write down the course of a run: numbers of updates and epochs, pictures, TensorBoard and Weights & Biases."""

import csv
import json
import logging
import math
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Protocol, Sequence

import numpy as np
from PIL import Image

from timm.utils import update_summary
from ...files import naming, remove_partial_files, to_json, write_complete
from ...output import View
from ...visualize import save_views
from ..errors import UserError, one_line
from ..flags.run_options import RunOptions
from ..run_folder import PICTURES, plain_options
from .report import CURVES, Report, can_draw_curves, draw_curves, read_lines

RUN_IDS = 'trackers.json'
_PACKAGES = dict(log_wandb='wandb', log_tensorboard='tensorboard')

_logger = logging.getLogger(__name__)
STEPS = 'metrics.jsonl'
EPOCHS = 'summary.csv'


class Tracker(Protocol):
    """What a run tells a tracker. Values are placed by the number of updates done."""

    def add_values(self, values: Dict[str, float], update: int) -> None:
        """Add numbers, by names like `train/loss`."""

    def add_picture(self, name: str, path: Path, update: int) -> None:
        """Add a picture that was written to a file."""

    def close(self, completed: bool) -> None:
        """Hand over what was not yet written, and say whether the run came to its end."""


def check_trackers(options: RunOptions) -> None:
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
def open_trackers(options: RunOptions, folder: Path, update: int) -> Iterator[List[Tracker]]:
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

    def __init__(self, options: RunOptions, folder: Path):
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


class Records:
    """Writes `metrics.jsonl`, a line per report, `summary.csv`, a row per evaluation, curves and pictures.

    What a run wrote after the checkpoint that it goes on from is cut off, so that nothing is told twice. Files that it
    was writing when it was killed are removed.

    Args:
        folder: Folder of the run.
        data_config: Mean and standard deviation that images were normalised with.
        update: Number of updates done before.
        updates_per_epoch: Number of updates of an epoch.
        trackers: Who else is told.
        report: Page that is written anew after each picture.
        warmup_epochs: Epochs in which the learning rate still rises, and errors are no reason for advice.
    """

    def __init__(
            self,
            folder: Path,
            data_config: Dict[str, Any],
            update: int,
            updates_per_epoch: int,
            trackers: Sequence[Tracker] = (),
            report: Optional[Report] = None,
            warmup_epochs: float = 0,
    ):
        self.warmup_epochs = warmup_epochs
        self.folder = folder
        self.data_config = data_config
        self.trackers = trackers
        self.report = report
        self.draws_curves = can_draw_curves()
        remove_partial_files(folder)
        _trim_rows(folder / EPOCHS, update // updates_per_epoch)
        _trim_lines(folder / STEPS, update, updates_per_epoch)

    def add_step(self, epoch: int, update: int, values: Dict[str, float]) -> None:
        """Write down what was reported after an update.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            values: Loss, learning rate and others by name.
        """
        self._add_line(dict(update=update, epoch=epoch, **values))
        for tracker in self.trackers:
            tracker.add_values({f'train/{k}': v for k, v in values.items()}, update)

    def add_epoch(
            self,
            epoch: int,
            update: int,
            train: Dict[str, float],
            held_out: Dict[str, Optional[float]],
            learning_rate: float,
    ) -> None:
        """Write down what an epoch came to.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            train: Means over the epoch.
            held_out: What was measured on held-out images, baselines, and what probes found, None where they were
                not asked in this epoch.
            learning_rate: Learning rate at its end.
        """
        name, error = next(iter(held_out.items()))
        _logger.info(f'epoch {epoch}: training loss {train["loss"]:.4f}, held-out {name} {error:.4f}')
        one_colour = held_out.get('mean_of_visible', math.inf)
        if epoch >= self.warmup_epochs and error > one_colour:
            _logger.warning(
                f'advice: after warm-up the held-out error, {error:.4f}, is larger than that of one colour for each '
                f'image, {one_colour:.4f}. Try another --lr, or more --epochs; the pictures show what is predicted.')
        path = self.folder / EPOCHS
        is_new = not path.exists() or not path.stat().st_size
        with naming(path):
            update_summary(epoch, train, held_out, filename=str(path), lr=learning_rate, write_header=is_new)
        _align_columns(path, ['epoch', *(f'train_{k}' for k in train), *(f'eval_{k}' for k in held_out), 'lr'])
        measured = {name: value for name, value in held_out.items() if value is not None}
        self._add_line(dict(update=update, epoch=epoch, **{f'eval_{k}': v for k, v in measured.items()}))
        for tracker in self.trackers:
            tracker.add_values({f'eval/{k}': v for k, v in measured.items()}, update)
        if self.draws_curves:
            draw_curves(self.folder / CURVES, read_lines(self.folder / STEPS))

    def add_picture(self, epoch: int, update: int, views: List[View], caption: str) -> None:
        """Draw what the method has to show.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            views: What `MIMMethod.views` returned.
            caption: Line above the pictures.
        """
        path = self.folder / PICTURES / f'epoch-{epoch:04d}.png'
        with naming(path):
            save_views(path, views, self.data_config['mean'], self.data_config['std'], caption)
        for tracker in self.trackers:
            tracker.add_picture('views', path, update)
        if self.report is not None:
            self.report.write(self.folder / STEPS)

    def _add_line(self, values: Dict[str, Any]) -> None:
        path = self.folder / STEPS
        with naming(path), open(path, 'a') as f:
            f.write(to_json(values) + '\n')


def _trim_rows(path: Path, epoch: int) -> None:
    """Drop the rows of an epoch and later ones, and one that was not written to its end."""
    if not path.exists():
        return
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b'']
    kept = [row for row in rows if row.endswith(b'\n') and int(row.split(b',')[0]) < epoch]
    write_complete(path, lambda partial: partial.write_bytes(b''.join([header, *kept] if kept else [])))


def _trim_lines(path: Path, update: int, updates_per_epoch: int) -> None:
    """Drop the lines of later updates than one, and one that was not written to its end.

    Epochs before may have had another number of updates.
    """
    if not path.exists():
        return
    epoch, within = divmod(update, updates_per_epoch)
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        done = values['epoch'] < epoch or within and values['epoch'] == epoch and values['update'] <= update
        if done and line.endswith('\n'):
            kept.append(line)
    write_complete(path, lambda partial: partial.write_text(''.join(kept)))


def _align_columns(path: Path, names: Sequence[str]) -> None:
    """Give a table one header, where its last row has other columns than those before, as after other probes."""
    with open(path, newline='') as f:
        header, *rows = csv.reader(f)
    if header == list(names):
        return
    table = [dict(zip(header, row)) for row in rows[:-1]] + [dict(zip(names, rows[-1]))]
    columns = list(dict.fromkeys([*header, *names]))

    def write(partial: Path) -> None:
        with open(partial, 'w', newline='') as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(table)
    write_complete(path, write)
