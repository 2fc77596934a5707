"""Mistakes of the person who runs a script."""
from contextlib import contextmanager

from .definitions import flags

# What timm and PyTorch raise for names, arguments and weights that do not fit.
MISFITS = (AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError)


class UserError(flags.UserError, ValueError):
    """One mistake of the user's, or several, each in one line. A script that ends with it prints these lines alone."""


@contextmanager
def user_errors(about: str, *kinds: type):
    """Turn errors of these kinds, which timm or PyTorch raise for an impossible value, into a `UserError`.

    Args:
        about: The flag that holds the value, as the user types it.
        *kinds: Exception types.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as e:
        reason = ' '.join(str(e).split())
        if isinstance(e, FileNotFoundError):
            reason = reason or 'there is no such file'
        raise UserError(f'{about}: {reason}' if reason else f'{about}.') from e
