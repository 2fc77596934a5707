"""Errors of masked image modeling, and functions that shorten an error message to one line."""

__all__ = ['ImageSizeError', 'MIMUnsupportedError', 'first_line', 'one_line']


class ImageSizeError(ValueError):
    """Raised when a model or method does not accept an image size. The message names the sizes that it accepts."""


class MIMUnsupportedError(ValueError):
    """Raised when a method does not support a model. The message is one line: the reason, and what would work."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or its type if there is no message."""
    text = str(error).strip()
    if 'Original Traceback' in text:  # a DataLoader worker failed: the message quotes the whole traceback
        text = text.splitlines()[-1].partition(': ')[2]
    return ' '.join(text.split()) or type(error).__name__
