"""The errors that end a run, the signals that stop it, and the exit code and message that the user gets."""

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

from timm.utils import world_info_from_env
from ..errors import one_line as one_line
from .flags.errors import UserError as UserError

# How gloo and sockets report that another process is gone. NCCL raises `DistError` instead.
_LOST_PEER = re.compile('Connection (closed by|reset by|refused)|Broken pipe|Timed out waiting|Socket Timeout')

# SIGHUP, which a closing terminal sends, does not exist on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name))

# A signal that repeats within this many seconds counts once: timeout(1) signals the process, and then its group.
_SAME_REQUEST = 0.5

MODULE = 'python -m timm.mim.pretrain'
EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command with --resume auto continues the run


class RunStopped(Exception):
    """A signal stopped the run, and the run can be continued.

    Attributes:
        command: The command that continues the run.
    """

    def __init__(self, message: str = '', command: str = ''):
        super().__init__(message)
        self.command = command


def flag_name(name: str) -> str:
    """Return the flag of an option, as the user types it."""
    return '--' + name.replace('_', '-')


def lost_process(error: RuntimeError) -> Optional[ConnectionError]:
    """Return a `ConnectionError` if an error means that another process of the run has died, None otherwise."""
    text = one_line(error)
    if re.search(r'DataLoader worker \(pid', text):
        what = 'a process that loads images has died, perhaps because memory ran out: try fewer --workers'
    elif isinstance(error, getattr(torch.distributed, 'DistError', ())) or _LOST_PEER.search(text):
        what = 'another process of the run has died or does not answer'
    else:
        return None
    return ConnectionError(f'{what}; --resume auto goes on from the last checkpoint. ({text[:200]})')


class UnreadableImages(Exception):
    """More images are unreadable than --max-unreadable allows."""


class StopSignal:
    """Catches the signals that stop a run, so that the run can save its state first.

    The first signal prints a message and makes the object true. A second signal of the same kind ends the program at
    once. A signal of another kind does not: when Ctrl-C stops torchrun, its processes get both SIGINT and SIGTERM.
    Signals that were ignored before, such as SIGHUP under nohup, stay ignored.

    Use it as a context manager in the main thread. In other threads Python allows no handlers, and the object stays
    false.
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
        """Redirect output from the closed terminal to the null device, because a write to it would end the run."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _die_of(number: int) -> None:
    """End the processes that load images, and end this one by the default action of the signal."""
    _announce(f'{signal.Signals(number).name}: stopped now')
    for child in multiprocessing.active_children():
        child.kill()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _announce(line: str) -> None:
    """Write a line from the first process, without Python's buffers, which the signal may have interrupted."""
    if world_info_from_env()[1]:
        return
    try:
        above = '\n' if os.isatty(2) else ''  # the current line of a terminal shows ^C or a progress bar
        os.write(2, f'{above}{os.path.basename(sys.argv[0])}: {line}\n'.encode(errors='replace'))
    except OSError:  # the terminal is gone
        pass


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors of the block into one line for the user and an exit code, and leave the process group."""
    try:
        yield
    except UserError as e:
        _exit(e, EXIT_MISTAKE)
    except RunStopped as e:
        _say(f'{one_line(e)}\n{e.command}')  # the command has its own line, so that it can be copied
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
    """Print the mistakes of an error, one per line, and end the program.

    Args:
        error: The error.
        code: Exit code.
        alone: This process alone has the error, so it prints with its rank. Otherwise only the first process prints.
    """
    for mistake in error.mistakes if isinstance(error, UserError) else [one_line(error)]:
        _say(f'error: {mistake}', alone)
    raise SystemExit(code)


def _say(text: str, alone: bool = False) -> None:
    rank, script = world_info_from_env()[1], program()
    if alone and rank:
        script = f'{script}: rank {rank}'
    if alone or rank == 0:
        try:
            # file names may hold bytes that are not valid text
            print(f'{script}: {text}'.encode(errors='backslashreplace').decode(), file=sys.stderr, flush=True)
        except OSError:  # the exit code stays the same when the terminal is gone
            pass
