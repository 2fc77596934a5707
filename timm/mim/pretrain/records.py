"""What is written down in the course of a run: numbers of steps and epochs, and pictures."""
import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, List

from timm.utils import trim_summary, update_summary
from ..output import View
from ..visualize import save_views
from .run_folder import PICTURES

_logger = logging.getLogger(__name__)

STEPS = 'metrics.jsonl'
EPOCHS = 'summary.csv'


class Records:
    """Writes `metrics.jsonl`, a line per report, `summary.csv`, a row per evaluation, and pictures.

    What a run wrote after the checkpoint that it goes on from is cut off, so that nothing is told twice.

    Args:
        folder: Folder of the run.
        options: Options of the run.
        data_config: Mean and standard deviation that images were normalised with.
        update: Number of updates done before.
        updates_per_epoch: Number of updates of an epoch.
    """

    def __init__(
            self,
            folder: Path,
            options: argparse.Namespace,
            data_config: Dict[str, Any],
            update: int,
            updates_per_epoch: int,
    ):
        self.folder = folder
        self.data_config = data_config
        trim_summary(str(folder / EPOCHS), update // updates_per_epoch)
        _trim_lines(folder / STEPS, update)

    def add_step(self, epoch: int, update: int, values: Dict[str, float]) -> None:
        """Write down what was reported after an update.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            values: Loss, learning rate and others by name.
        """
        self._add_line(dict(update=update, epoch=epoch, **values))

    def add_epoch(
            self,
            epoch: int,
            update: int,
            train: Dict[str, float],
            held_out: Dict[str, float],
            learning_rate: float,
    ) -> None:
        """Write down what an epoch came to.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done.
            train: Means over the epoch.
            held_out: What was measured on held-out images, and baselines.
            learning_rate: Learning rate at its end.
        """
        name, error = next(iter(held_out.items()))
        _logger.info(f'epoch {epoch}: training loss {train["loss"]:.4f}, held-out {name} {error:.4f}')
        update_summary(epoch, train, held_out, filename=str(self.folder / EPOCHS), lr=learning_rate)
        self._add_line(dict(update=update, epoch=epoch, **{f'eval_{k}': v for k, v in held_out.items()}))

    def add_picture(self, epoch: int, views: List[View], caption: str) -> None:
        """Draw what the method has to show.

        Args:
            epoch: Number of the epoch.
            views: What `MIMMethod.views` returned.
            caption: Line above the pictures.
        """
        path = self.folder / PICTURES / f'epoch-{epoch:04d}.png'
        save_views(path, views, self.data_config['mean'], self.data_config['std'], caption)

    def _add_line(self, values: Dict[str, Any]) -> None:
        with open(self.folder / STEPS, 'a') as f:
            f.write(json.dumps(values) + '\n')


def _trim_lines(path: Path, update: int) -> None:
    """Drop the lines of later updates than one, and one that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith('\n') and json.loads(line)['update'] <= update:
                kept.append(line)
        except ValueError:
            continue
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(''.join(kept))
    os.replace(temporary, path)
