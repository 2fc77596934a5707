"""What ends a run before its time."""
import re
from typing import Optional

import torch

from .flags.errors import UserError as UserError

# How gloo and sockets report it; NCCL has an exception of its own.
_LOST_PEER = re.compile('Connection (closed by|reset by|refused)|Broken pipe|Timed out waiting|Socket Timeout')


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


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, the name of its type if it has none."""
    text = str(error).strip()
    if 'Original Traceback' in text:  # an error in a process that loads images, which quotes the whole of it
        text = text.splitlines()[-1].partition(': ')[2]
    return ' '.join(text.split()) or type(error).__name__


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
