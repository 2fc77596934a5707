"""How a script ends where it cannot go on: one line, and an exit code that tells why."""
import os
import signal
import sys
from contextlib import contextmanager
from typing import Iterator

import torch

from .data.reading import UnreadableImages
from .errors import RunStopped, UserError, lost_process, one_line

MODULE = 'python -m timm.mim.pretrain'
EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command with --resume auto goes on


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
