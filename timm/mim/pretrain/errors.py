"""What ends a run before its time."""


class UserError(Exception):
    """A mistake of the user's. The message is one line: what is wrong, what is allowed."""


class RunStopped(Exception):
    """The run was asked to stop, and has saved what it takes to go on."""


def flag_name(name: str) -> str:
    """Spell an argument as the user types it."""
    return '--' + name.replace('_', '-')


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, the name of its type if it has none."""
    return ' '.join(str(error).split()) or type(error).__name__
