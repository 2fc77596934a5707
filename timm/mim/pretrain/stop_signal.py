"""Stopping a run from outside: SIGTERM, as schedulers send it before they kill, and Ctrl-C."""
import signal
import threading
from types import FrameType
from typing import Optional

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Notes a signal instead of dying of it. A second one of the same kind does what it always does.

    Used as a context manager; truthy once a signal has come. Outside of the main thread, where Python allows no
    handlers, it never is.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._previous = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> 'StopSignal':
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.received = number
        signal.signal(number, self._previous[number])
