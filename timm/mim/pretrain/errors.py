"""Errors that end a run, signals that stop it, and the exit code and the single line that the user sees."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from types import FrameType
from typing import Iterator, List, Optional

import torch

from ..errors import one_line as one_line
from .flags.errors import UserError as UserError

# How gloo and sockets report it; NCCL has an exception of its own.
_LOST_PEER = re.compile('Connection (closed by|reset by|refused)|Broken pipe|Timed out waiting|Socket Timeout')

# What a terminal sends when it closes does not exist on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name))

# Seconds within which a signal counts as sent once. timeout(1) sends it to the process, and again to its group.
_SAME_REQUEST = 0.5

MODULE = 'python -m timm.mim.pretrain'
EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command with --resume auto goes on


class RunStopped(Exception):
    """The run was asked to stop, and has saved what it takes to go on.

    Attributes:
        command: The command that goes on.
    """

    def __init__(self, message: str = '', command: str = ''):
        super().__init__(message)
        self.command = command


def flag_name(name: str) -> str:
    """Spell an argument as the user types it."""
    return '--' + name.replace('_', '-')


def lost_process(error: RuntimeError) -> Optional[ConnectionError]:
    """Say that another process of the run has died, if that is why this one failed."""
    text = one_line(error)
    if re.search(r'DataLoader worker \(pid', text):
        what = 'a process that loads images has died, for want of memory perhaps (--workers)'
    elif isinstance(error, getattr(torch.distributed, 'DistError', ())) or _LOST_PEER.search(text):
        what = 'another process of the run has died or does not answer'
    else:
        return None
    return ConnectionError(f'{what}; --resume auto goes on from the last checkpoint. ({text[:200]})')


class UnreadableImages(Exception):
    """More of the images cannot be read than the user allows."""


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
            _announce(f'{signal.Signals(number).name}: stopping after this step; again to stop now')
        self.received = number

    def _leave_terminal(self) -> None:
        """Write to nowhere what was written to the terminal: it is gone, and a write to it would end the run."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _die_of(number: int) -> None:
    """Do what a signal does to a program that knows nothing of it, and end the processes that load images."""
    _announce(f'{signal.Signals(number).name}: stopped now')
    for child in multiprocessing.active_children():
        child.kill()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _announce(line: str) -> None:
    """Write a line for all processes of the run, past Python's buffers: the signal may have come while one is written.
    """
    if int(os.environ.get('RANK', 0)):
        return
    try:
        above = '\n' if os.isatty(2) else ''  # the terminal shows ^C, or a progress bar
        os.write(2, f'{above}{os.path.basename(sys.argv[0])}: {line}\n'.encode(errors='replace'))
    except OSError:  # nobody is there to read it
        pass


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with one line and an exit code where the block cannot go on, and leave the other processes."""
    try:
        yield
    except UserError as e:
        _exit(e, EXIT_MISTAKE)
    except RunStopped as e:
        _say(f'{one_line(e)}\n{e.command}')  # the command alone in its line, to be pasted
        raise SystemExit(EXIT_STOPPED) from None
    except KeyboardInterrupt:
        _say('interrupted, nothing was written.')
        raise SystemExit(EXIT_INTERRUPTED) from None
    except (FloatingPointError, UnreadableImages) as e:
        _exit(e, EXIT_FAILED)
    except OSError as e:
        _exit(e, EXIT_FAILED, alone=True)
    except RuntimeError as e:
        lost = lost_process(e)
        if lost is None:
            raise
        _exit(lost, EXIT_FAILED, alone=True)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def program() -> str:
    """Return the name of the program as the user started it."""
    name = os.path.basename(sys.argv[0])
    return MODULE if name == '__main__.py' else name


def _exit(error: Exception, code: int, alone: bool = False) -> None:
    """End the program with a line, which one process prints for all unless it is alone with the error."""
    for mistake in error.mistakes if isinstance(error, UserError) else [one_line(error)]:
        _say(f'error: {mistake}', alone)
    raise SystemExit(code)


def _say(text: str, alone: bool = False) -> None:
    rank, script = int(os.environ.get('RANK', 0)), program()
    if alone and rank:
        script = f'{script}: rank {rank}'
    if alone or rank == 0:
        try:
            # names of files need not be text
            print(f'{script}: {text}'.encode(errors='backslashreplace').decode(), file=sys.stderr, flush=True)
        except OSError:  # a terminal that is gone must not change the exit code
            pass
