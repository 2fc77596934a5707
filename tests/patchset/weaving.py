"""Before and after, in the manner of LibCST's `assertCodemod`."""
import textwrap

import pytest

from patchset import PatchsetError
from patchset.weave import weave

PATH = 'timm/models/net.py'


def text(source):
    """A source as bytes, without the indentation that it has in a test."""
    return textwrap.dedent(source).lstrip('\n').encode()


def overlay(source):
    return b'# Overlay: a test.\n' + text(source)


def assert_woven(before, change, after):
    assert weave(text(before), overlay(change), PATH).decode() == text(after).decode()


def assert_refused(before, change, *parts):
    """Weaving fails with one line that holds all parts, of which the file's path always is one."""
    with pytest.raises(PatchsetError) as error:
        weave(text(before), overlay(change), PATH)
    message = str(error.value)
    assert '\n' not in message
    for part in (PATH,) + parts:
        assert part in message, message
