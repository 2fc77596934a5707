"""Errors of masked image modeling, and how the message of an error is put on one line."""

__all__ = ['ImageSizeError', 'MIMUnsupportedError', 'first_line', 'one_line']


class ImageSizeError(ValueError):
    """A model, or a method on it, does not take images of a size. The message names what it takes."""


class MIMUnsupportedError(ValueError):
    """The method cannot serve the model. The message is one line that names the reason and what would work."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or its type if there is no message."""
    text = str(error).strip()
    if 'Original Traceback' in text:  # an error in a process that loads images, which quotes the whole of it
        text = text.splitlines()[-1].partition(': ')[2]
    return ' '.join(text.split()) or type(error).__name__
