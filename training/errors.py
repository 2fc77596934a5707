"""Report errors of timm and PyTorch that the user caused as errors of the user."""
from contextlib import contextmanager

from .definitions import flags

# What timm and PyTorch raise for names, arguments and weights that do not fit.
MISFITS = (AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError)


UserError = flags.UserError


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
