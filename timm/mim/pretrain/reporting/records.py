"""Record the metrics and pictures of a run in files, TensorBoard and Weights & Biases."""

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
    """Interface of a tracker. The number of updates done is the step of all values and pictures."""

    def add_values(self, values: Dict[str, float], update: int) -> None:
        """Log metrics, with names such as `train/loss`."""

    def add_picture(self, name: str, path: Path, update: int) -> None:
        """Log a picture from a file."""

    def close(self, completed: bool) -> None:
        """Write all pending data, and mark the run as completed or failed."""


def check_trackers(options: RunOptions) -> None:
    """Check that the packages of the requested trackers are installed.

    Raises:
        UserError: A package is missing, or an option is for a tracker that was not requested.
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
    """Open the requested trackers. When the block ends, close them as completed, or as failed if it raised an error.

    Args:
        options: Options of the run.
        folder: Folder of the run.
        update: Number of updates done before. Values of later updates will be logged again.

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
    """Writes event files for TensorBoard.

    Args:
        folder: Folder of the files.
        update: Number of updates done before. Existing values of later updates are hidden.
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
    """Logs to a run at Weights & Biases. The run folder stores its id, so that a resumed run continues the same one.

    Args:
        options: Options of the run.
        folder: Folder of the run.

    Raises:
        UserError: The run cannot be started, for example because the user is not logged in.
    """

    def __init__(self, options: RunOptions, folder: Path):
        import wandb
        self.wandb = wandb
        run_id = options.wandb_resume_id or (_read_run_ids(folder).get('wandb') if options.resume else None)
        folder.mkdir(parents=True, exist_ok=True)
        self.run = start_wandb(options, folder.name, plain_options(options), run_id, dir=str(folder))
        # a resumed run logs some updates again, which wandb's own step counter does not allow
        self.run.define_metric('update')
        self.run.define_metric('*', step_metric='update')
        text = json.dumps(dict(wandb=self.run.id)) + '\n'
        write_complete(folder / RUN_IDS, lambda partial: partial.write_text(text))

    def add_values(self, values: Dict[str, float], update: int) -> None:
        self.run.log({**values, 'update': update})

    def add_picture(self, name: str, path: Path, update: int) -> None:
        self.run.log({name: self.wandb.Image(str(path)), 'update': update})

    def close(self, completed: bool) -> None:
        # without an exit code, wandb would show a failed or stopped run as finished
        self.run.finish(exit_code=0 if completed else 1)


def start_wandb(options: Any, name: str, config: Dict[str, Any], run_id: Optional[str] = None, **arguments: Any) -> Any:
    """Start or continue a run at Weights & Biases, for pre-training and for training with labels.

    Args:
        options: Options with `wandb_project`, `wandb_tags` and `wandb_resume_id`.
        name: Name of the run.
        config: Options to store with the run.
        run_id: Run to continue if it exists, None for a new one.
        **arguments: Further arguments of `wandb.init`.

    Returns:
        The run.

    Raises:
        UserError: wandb is not installed, or the run cannot be started, for example because the user is not logged in.
    """
    try:
        import wandb
    except ImportError as e:
        raise UserError('--log-wandb: wandb is not installed; pip install wandb.') from e
    try:
        return wandb.init(
            project=options.wandb_project,
            name=name,
            tags=options.wandb_tags,
            config=config,
            id=run_id or None,
            resume='must' if options.wandb_resume_id else 'allow' if run_id else None,
            **arguments,
        )
    except Exception as e:  # wandb raises errors of many types without a common base
        raise UserError(f'--log-wandb: {one_line(e)}') from e


def _read_run_ids(folder: Path) -> Dict[str, Any]:
    path = folder / RUN_IDS
    return json.loads(path.read_text()) if path.exists() else {}


class Records:
    """Writes `metrics.jsonl` (one line per report or evaluation), `summary.csv` (one row per evaluation), curves and
    pictures.

    When a run resumes, records from after its checkpoint are removed, because the run writes them again. Partly written
    files of a killed run are removed too.

    Args:
        folder: Folder of the run.
        data_config: Mean and standard deviation that images were normalised with.
        update: Number of updates done before.
        updates_per_epoch: Number of updates in an epoch.
        trackers: Trackers that get the same values and pictures.
        report: HTML page, which is rewritten after each picture.
        warmup_epochs: Number of warm-up epochs, in which a large error gives no advice.
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
        """Record the metrics of a report.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            values: Loss, learning rate and other metrics by name.
        """
        self._add_line(dict(update=update, epoch=epoch, **values))
        for tracker in self.trackers:
            tracker.add_values({f'train/{k}': v for k, v in values.items()}, update)

    def add_start(self, accuracies: Dict[str, float]) -> None:
        """Record the accuracies of probes of the encoder before training, as an evaluation after 0 updates."""
        self._add_line(dict(update=0, epoch=0, **{f'eval_{k}': v for k, v in accuracies.items()}))
        for tracker in self.trackers:
            tracker.add_values({f'eval/{k}': v for k, v in accuracies.items()}, 0)

    def add_epoch(
            self,
            epoch: int,
            update: int,
            train: Dict[str, float],
            held_out: Dict[str, Optional[float]],
            learning_rate: float,
    ) -> None:
        """Record the results of an epoch.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            train: Means over the epoch.
            held_out: Held-out errors, baselines and accuracies of probes by name; None for probes that did not run.
            learning_rate: Learning rate at the end of the epoch.
        """
        name, error = next(iter(held_out.items()))
        _logger.info(f'epoch {epoch + 1}: training loss {train["loss"]:.4f}, held-out {name} {error:.4f}')
        one_colour = held_out.get('mean_of_visible', math.inf)
        if epoch >= self.warmup_epochs and error > one_colour:
            _logger.warning(
                f'advice: after warm-up, the held-out error {error:.4f} is larger than {one_colour:.4f}, the error of '
                'one mean colour per image. Try another --lr or more --epochs; the pictures show the predictions.')
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
        """Save a picture of what the method sees and predicts, log it to the trackers, and rewrite the HTML page.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            views: Result of `MIMMethod.views`.
            caption: Line above the picture.
        """
        path = self.folder / PICTURES / f'epoch-{epoch:04d}.png'
        with naming(path):
            save_views(
                path, views, self.data_config['mean'], self.data_config['std'], caption, self.data_config.get('bands'))
        for tracker in self.trackers:
            tracker.add_picture('views', path, update)
        if self.report is not None:
            self.report.write(self.folder / STEPS)

    def _add_line(self, values: Dict[str, Any]) -> None:
        path = self.folder / STEPS
        with naming(path), open(path, 'a') as f:
            f.write(to_json(values) + '\n')


def _trim_rows(path: Path, epoch: int) -> None:
    """Delete the rows of this epoch and later ones, and an incomplete row."""
    if not path.exists():
        return
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b'']
    kept = [row for row in rows if row.endswith(b'\n') and int(row.split(b',')[0]) < epoch]
    write_complete(path, lambda partial: partial.write_bytes(b''.join([header, *kept] if kept else [])))


def _trim_lines(path: Path, update: int, updates_per_epoch: int) -> None:
    """Delete the lines after an update, and an incomplete line. Earlier epochs may have had other numbers of updates.
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
    """Rewrite a table with the columns of all rows if its last row has other columns, for example other probes."""
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
