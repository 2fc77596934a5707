"""The processes that load images, and signals: they go on when a run is told to stop, until it is saved."""
import signal
from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator, Optional

from torch.utils.data import DataLoader

from timm.data.loader import PrefetchLoader
from ..stop_signal import SIGNALS


def leave_signals_alone(loader: DataLoader) -> None:
    """Let the workers of a loader ignore the signals that stop a run."""
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(others: Optional[Callable], worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if others is not None:
        others(worker)


@contextmanager
def ending_workers(loader: PrefetchLoader) -> Iterator[None]:
    """End the workers of a loader with the block: they ignore the signal that would end them with the program."""
    try:
        yield
    finally:
        iterator = getattr(loader.loader, '_iterator', None)  # there is no public way
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
