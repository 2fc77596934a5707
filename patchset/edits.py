"""Replacements in bytes, applied together."""
from typing import Iterable, NamedTuple


class Edit(NamedTuple):
    """Replace the bytes from `start` to `end`."""
    start: int
    end: int
    text: bytes


def apply_edits(data: bytes, edits: Iterable[Edit]) -> bytes:
    """Every byte outside the edits stays. Edits at the same place keep the order in which they come."""
    pieces, position = [], 0
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if edit.start < position:
            raise AssertionError(f'overlapping edits at byte {edit.start}')
        pieces += [data[position:edit.start], edit.text]
        position = edit.end
    return b''.join(pieces + [data[position:]])
