"""Mistakes of the person who runs a script."""


class UserError(Exception):
    """One mistake of the user's, or several. Each is one line: what is wrong, what is allowed.

    Args:
        *mistakes: The lines, in the order in which the user wants to know them.
    """

    @property
    def mistakes(self) -> tuple:
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return '\n'.join(self.mistakes)
