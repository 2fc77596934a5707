"""The notice of change that Apache-2.0, section 4b, asks for in modified files."""
from typing import Mapping

from .source import Source

NOTICE = (
    '# NOTICE: modified from {name} {version} by its masked image modeling fork.\n'
    "# Generated: edit the overlay {path} in the fork's repository, not this file.\n"
)


def add_notice(data: bytes, path: str, pin: Mapping[str, str]) -> bytes:
    """Comments at the head of a file, after a `#!` line."""
    source = Source(data, path)
    text = NOTICE.format(path=path, **pin).encode().replace(b'\n', source.newline)
    head = len(source.lines[0]) if data.startswith(b'#!') else 0
    return data[:head] + text + data[head:]
