"""Stopping a run from outside: SIGTERM, as schedulers send it before they kill, Ctrl-C, and a terminal that closes."""
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import List, Optional

# What a terminal sends when it closes does not exist on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name))

# Seconds within which a signal counts as sent once. timeout(1) sends it to the process, and again to its group.
_SAME_REQUEST = 0.5


class StopSignal:
    """Notes a signal instead of dying of it, and says so at once. A second one of the same kind ends the program.

    A signal of another kind is no second request: where Ctrl-C stops torchrun, its processes get SIGINT and SIGTERM.
    Signals that were ignored before, as SIGHUP is under nohup, stay ignored.

    Used as a context manager; truthy once a signal has come. Outside of the main thread, where Python allows no
    handlers, it never is.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._times = {}
        self._previous = {}
        self._terminals: List[int] = []

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> 'StopSignal':
        if threading.current_thread() is threading.main_thread():
            self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        now = time.monotonic()
        first = self._times.setdefault(number, now)
        if now - first > _SAME_REQUEST:
            _die_of(number)
        if number == getattr(signal, 'SIGHUP', None):
            self._leave_terminal()
        if self.received is None:
            _say(f'{signal.Signals(number).name}: stopping after this step; again to stop now')
        self.received = number

    def _leave_terminal(self) -> None:
        """Write to nowhere what was written to the terminal: it is gone, and a write to it would end the run."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _die_of(number: int) -> None:
    """Do what a signal does to a program that knows nothing of it, and end the processes that load images."""
    _say(f'{signal.Signals(number).name}: stopped now')
    for child in multiprocessing.active_children():
        child.kill()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(line: str) -> None:
    """Write a line for all processes of the run, past Python's buffers: the signal may have come while one is written.
    """
    if int(os.environ.get('RANK', 0)):
        return
    try:
        above = '\n' if os.isatty(2) else ''  # the terminal shows ^C, or a progress bar
        os.write(2, f'{above}{os.path.basename(sys.argv[0])}: {line}\n'.encode(errors='replace'))
    except OSError:  # nobody is there to read it
        pass
