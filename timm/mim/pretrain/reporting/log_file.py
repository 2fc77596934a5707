"""The log of a run: every line that it says, in its folder."""
import logging
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

from ..errors import RunStopped, one_line

LOG = 'train.log'


class LogFile:
    """Writes log lines to `train.log`, also those that come before there is a folder, and what ends the run at last.

    Used as a context manager. A run that goes on appends to the lines that are there.
    """

    def __init__(self) -> None:
        self.handler: logging.Handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)

    def open(self, folder: Optional[Path]) -> None:
        """Write to a folder from now on, or nowhere, as all processes but the first do."""
        kept, self.handler = self.handler, logging.NullHandler() if folder is None else _LinesToFile(folder / LOG)
        logging.root.removeHandler(kept)
        logging.root.addHandler(self.handler)
        for record in kept.buffer:
            self.handler.handle(record)

    def __enter__(self) -> 'LogFile':
        logging.root.addHandler(self.handler)
        return self

    def __exit__(
            self,
            kind: Optional[Type[BaseException]],
            error: Optional[BaseException],
            traceback: Optional[TracebackType],
    ) -> None:
        logging.root.removeHandler(self.handler)
        if error is not None:
            if isinstance(error, RunStopped):
                self._write(logging.INFO, f'{error}\n{error.command}')
            else:
                self._write(logging.ERROR, f'{kind.__name__}: {one_line(error)}')
        self.handler.close()

    def _write(self, level: int, message: str) -> None:
        self.handler.handle(logging.makeLogRecord(dict(msg=message, levelno=level)))


class _LinesToFile(logging.FileHandler):
    def __init__(self, path: Path):
        super().__init__(path, encoding='utf-8', errors='backslashreplace')  # names of files need not be text
        self.setFormatter(logging.Formatter('%(asctime)s  %(message)s', datefmt='%Y-%m-%d %H:%M:%S'))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk takes no lines; the next checkpoint ends the run and says so, without a traceback per line."""
