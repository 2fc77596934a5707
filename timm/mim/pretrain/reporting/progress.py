"""Progress of a run: a bar on a terminal, plain lines elsewhere."""
import logging
import sys
import time
from contextlib import contextmanager
from typing import Iterator, Optional

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .memory import peak_memory

_logger = logging.getLogger(__name__)


class Progress:
    """Reports loss, images per second, memory and the time left.

    Args:
        first_update: Number of updates that were done before, by the run that is resumed.
        num_updates: Number of updates of the whole run.
        images_per_update: Global batch size.
        bar: Show a bar instead of writing lines.
        quiet: Report nothing, as all processes but the first do.
        device: Device that is trained on, whose memory is told.
    """

    def __init__(
            self,
            first_update: int,
            num_updates: int,
            images_per_update: int,
            bar: bool = False,
            quiet: bool = False,
            device: torch.device = torch.device('cpu'),
    ):
        self.num_updates = num_updates
        self.images_per_update = images_per_update
        self.quiet = quiet
        self.device = device
        self.bar: Optional[tqdm] = None
        if bar and not quiet:
            self.bar = tqdm(total=num_updates, initial=first_update, unit='step', dynamic_ncols=True)
        self.last_update = first_update
        self.last_time = time.perf_counter()
        self.seconds_per_update: Optional[float] = None
        self.images_per_second = 0.0

    def advance(self) -> None:
        """Count an update."""
        if self.bar is not None:
            self.bar.update()

    def report(self, epoch: int, update: int, loss: float, learning_rate: float) -> None:
        """Show the state of the run.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done in the whole run.
            loss: Mean loss since the last report.
            learning_rate: Present learning rate.
        """
        now = time.perf_counter()
        seconds = (now - self.last_time) / max(1, update - self.last_update)
        self.last_update, self.last_time = update, now
        # Averaged, so that the time left does not jump.
        previous = self.seconds_per_update
        self.seconds_per_update = seconds if previous is None else 0.7 * previous + 0.3 * seconds
        self.images_per_second = self.images_per_update / max(seconds, 1e-9)
        if self.quiet:
            return
        rate = self.images_per_second
        memory = f'{peak_memory(self.device) / 1e9:.1f} GB'
        if self.bar is not None:
            self.bar.set_postfix_str(f'epoch {epoch}, loss {loss:.4f}, {rate:.1f} images/s, {memory}')
            return
        left = tqdm.format_interval((self.num_updates - update) * self.seconds_per_update)
        _logger.info(
            f'epoch {epoch}  step {update}/{self.num_updates}  loss {loss:.4f}  lr {learning_rate:.2e}  '
            f'{rate:.1f} images/s  {left} left  {memory}')

    def pause(self) -> None:
        """Leave out the time since the last report, which went into something other than training."""
        self.last_time = time.perf_counter()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def lines_above_bar(bar: bool) -> Iterator[None]:
    """Let log lines appear above a bar."""
    if not bar:
        yield
        return
    with logging_redirect_tqdm():
        yield


def wants_bar(distributed: bool) -> bool:
    """Whether there is a terminal that a bar can be drawn on, and only one process to draw."""
    return sys.stderr.isatty() and not distributed
