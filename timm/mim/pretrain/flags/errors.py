"""Mistakes of the person who runs a script."""
from contextlib import contextmanager
from typing import Iterator, List


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


class Mistakes:
    """Mistakes that are told all at once, in the order in which they are noted."""

    def __init__(self):
        self.found: List[str] = []

    def add(self, mistake: str) -> None:
        """Note a mistake, in one line."""
        self.found.append(mistake)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Note the mistakes that end the block, instead of ending the program."""
        try:
            yield
        except UserError as e:
            self.found.extend(e.mistakes)

    def raise_all(self) -> None:
        """Raise a `UserError` with all of them, if there are any."""
        if self.found:
            raise UserError(*self.found)
