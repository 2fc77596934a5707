"""Errors that report the user's mistakes."""
from contextlib import contextmanager
from typing import Iterator, List


class UserError(ValueError):
    """One or more mistakes of the user. Each is one line that says what is wrong and what is allowed.

    It is a `ValueError`, as the scripts of timm raise for the same mistakes.

    Args:
        *mistakes: The lines, in the order in which they are shown.
    """

    @property
    def mistakes(self) -> tuple:
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return '\n'.join(self.mistakes)


class Mistakes:
    """Collects mistakes, to report all of them together."""

    def __init__(self):
        self.found: List[str] = []

    def add(self, mistake: str) -> None:
        """Add a mistake, in one line."""
        self.found.append(mistake)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add the mistakes of a `UserError` that the block raises, and continue after the block."""
        try:
            yield
        except UserError as e:
            self.found.extend(e.mistakes)

    def raise_all(self) -> None:
        """Raise a `UserError` with all of them, if there are any."""
        if self.found:
            raise UserError(*self.found)
