"""Texts that weaving puts in: upstream's statements between the lines of the overlay."""
import ast
from typing import List

from .errors import PatchsetError
from .overlay import Item, Overlay
from .source import Source, first_line, is_ellipsis
from .splits import Part, Split


def with_newline(text: bytes, newline: bytes) -> bytes:
    return newline.join(text.splitlines())


def render_item(overlay: Overlay, item: Item, newline: bytes) -> bytes:
    return with_newline(overlay.block(item), newline)


def render_part(upstream: Source, overlay: Overlay, split: Split, part: Part) -> bytes:
    """The overlay's method with upstream's statements, verbatim, in place of `...`."""
    item = part.item
    ellipsis = next(statement for statement in item.node.body if is_ellipsis(statement))
    lines = overlay.block(item).splitlines()
    # the block ends with the method, so that counting from its end is right whatever was cut off before
    here = len(lines) - (overlay.source.last_line(item.node) - ellipsis.lineno) - 1
    before, after = lines[:here], lines[here + 1:]
    newline = upstream.newline
    return newline.join(before + [moved_text(upstream, split, part)] + after)


def moved_text(upstream: Source, split: Split, part: Part) -> bytes:
    """Statements with the comments and blank lines between them; blank lines before them are left out."""
    lines: List[int] = []
    for i in part.indices:
        lines += statement_lines(upstream, split, i)
    while upstream.is_blank(lines[0]):
        lines.pop(0)
    return b''.join(upstream.lines[line - 1] for line in lines).rstrip(b'\r\n')


def statement_lines(upstream: Source, split: Split, index: int) -> range:
    """A statement with the comments above it; the last one of a method has those below it, too."""
    statement, body = split.statements[index], split.source.body
    position = body.index(statement)
    floor = upstream.last_line(body[position - 1]) + 1 if position else 1
    first = first_line(statement)
    while first > floor and (upstream.is_comment(first - 1) or upstream.is_blank(first - 1)):
        first -= 1
    last = upstream.last_line(split.source if statement is body[-1] else statement)
    return range(first, last + 1)


def check_comments(upstream: Source, overlay: Overlay, split: Split, where: str) -> None:
    """The comments of a statement that is dropped stand in the overlay, with the code that they explain."""
    moved = {i for part in split.parts for i in part.indices}
    ours = {line.strip() for line in overlay.source.lines}
    for i in set(range(len(split.statements))) - moved:
        for line in statement_lines(upstream, split, i):
            comment = upstream.lines[line - 1].strip()
            if upstream.is_comment(line) and comment not in ours:
                raise PatchsetError(
                    where, f"drops a statement and with it its comment '{comment.decode()}' (line {line} of "
                           'upstream): write the comment in the overlay')


def own_comments(overlay: Overlay, item: Item) -> bool:
    """Whether the overlay has comments right above the item."""
    return overlay.leading_line(item) < first_line(item.node)


def upstream_comments(upstream: Source, node: ast.stmt) -> bytes:
    """The comments right above an upstream statement, with their newlines."""
    return b''.join(upstream.lines[upstream.leading_line(node) - 1:first_line(node) - 1])
