"""The one exception that the user sees as a line."""


class PatchsetError(Exception):
    """A mistake in an overlay, the lock or the set-up. Its text is one line: where, what is wrong, what is allowed."""

    def __init__(self, where: str, problem: str):
        super().__init__(f'{where}: {problem}' if where else problem)
