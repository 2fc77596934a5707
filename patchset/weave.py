"""Upstream's file and an overlay give the woven file. Nothing is read from disk, and nothing is written.

What the overlay does not name stays as it is, byte for byte. For each class and for the module, the texts that come in
are made (`render_...`), put in order (`arrange`) and turned into replacements of bytes (`place_edits`).
"""
import ast
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from . import PatchsetError
from .names import check_names, import_edits
from .overlay import Item, Overlay
from .plan import Change, Part, Plan, ScopePlan, Split, make_plan
from .protocol import WHOLE, check_free, render_whole, served_classes
from .source import (
    Edit, Function, Source, apply_edits, bound_name, docstring, first_line, is_ellipsis, parse, with_newline,
)


def weave(upstream: bytes, overlay: bytes, path: str) -> bytes:
    """Args:
        path: The file's path, for messages.
    """
    return weave_plan(make_plan(upstream, overlay, path), path)


def weave_plan(plan: Plan, path: str) -> bytes:
    check_free(plan.upstream, served_classes(plan.overlay.source.tree), path)
    edits = import_edits(plan.upstream, plan.overlay)
    # classes first: what is added at the end of a class stands before what is added after the class
    for scope in plan.classes + [plan.module]:
        edits += scope_edits(plan, scope)
    woven = apply_edits(plan.upstream.data, edits)
    check_names(plan, parse(woven, f'{path} (woven)'))
    return woven


def scope_edits(plan: Plan, scope: ScopePlan) -> List[Edit]:
    for name, split in scope.splits.items():
        check_comments(plan.upstream, plan.overlay, split, f'{scope.where}{name}')
    places, attributes, loose = arrange(plan, scope)
    return (
        base_edits(plan, scope)
        + [edit for blocks in places for edit in place_edits(plan, scope, blocks)]
        + attribute_edits(plan, scope, attributes)
        + end_edits(plan, scope, loose)
    )


@dataclass(frozen=True)
class Block:
    """The text of a change; None where upstream's own stays, that of a partial class."""
    change: Change
    text: Optional[bytes]


def arrange(plan: Plan, scope: ScopePlan) -> Tuple[List[List[Block]], List[Block], List[Block]]:
    """Returns:
        Blocks by place upstream, class attributes that are added, and additions that have no neighbour with a place.
    """
    blocks = [Block(change, block_text(plan, scope, change)) for change in scope.changes]
    attributes = [block for block in blocks if scope.node and is_added(block) and is_assignment(block)]
    rest = [block for block in blocks if block not in attributes]
    if all(is_added(block) for block in rest):
        return [], attributes, rest
    places = []
    for node_id in dict.fromkeys(id(block.change.node) for block in rest if not is_added(block)):
        place = in_order([b for b in rest if id(b.change.node) == node_id], scope)
        kept = scope.keeps_whole and place[0].change.node is scope.splits[WHOLE].source
        places.append(([whole_block(plan, scope)] if kept else []) + place)
    return attach(rest, places, plan), attributes, []


def is_added(block: Block) -> bool:
    return block.change.kind == 'added'


def is_assignment(block: Block) -> bool:
    return block.change.item.kind == 'assignment'


def block_text(plan: Plan, scope: ScopePlan, change: Change) -> Optional[bytes]:
    if change.kind == 'class':
        return None
    if change.kind == 'removed':
        return b''
    if change.kind == 'part':
        split = scope.splits[change.item.moved.source]
        return render_part(plan.upstream, plan.overlay, split, scope.part(change.item))
    return render_item(plan.overlay, change.item, plan.upstream.newline)


def whole_block(plan: Plan, scope: ScopePlan) -> Block:
    """Upstream's header of `forward_features`, which stands before the parts: what moves stays where it was."""
    source = scope.splits[WHOLE].source
    change = Change('kept', Item('function', WHOLE, source), source)
    return Block(change, render_whole(plan.upstream, source, scope.whole_body()))


def in_order(blocks: List[Block], scope: ScopePlan) -> List[Block]:
    """The parts of a split in upstream's order; the method that redefines it follows the part that it follows in the
    overlay, or comes first."""
    parts = [block for block in blocks if block.change.kind != 'redefined']
    ordered = sorted(parts, key=lambda b: scope.part(b.change.item).indices[0]) if len(parts) > 1 else parts
    for position, block in enumerate(blocks):
        if block.change.kind == 'redefined':
            after = ordered.index(blocks[position - 1]) + 1 if position else 0
            ordered.insert(after, block)
    return ordered


def attach(blocks: List[Block], places: List[List[Block]], plan: Plan) -> List[List[Block]]:
    """Additions stand before the next block that has a place upstream, else after the previous one."""
    places = [with_comments(place, plan) for place in places]
    waiting: List[Block] = []
    last: Optional[Block] = None
    for block in blocks:
        if is_added(block):
            waiting.append(block)
            continue
        last = block
        insert_beside(places, block, waiting, 0)
        waiting = []
    insert_beside(places, last, waiting, 1)
    return places


def insert_beside(places: List[List[Block]], neighbour: Block, added: List[Block], shift: int) -> None:
    for place in places:
        for position, block in enumerate(place):
            if block.change is neighbour.change:
                before_whole = not shift and position == 1 and place[0].change.kind == 'kept'
                position = 0 if before_whole else position + shift
                place[position:position] = added
                return


def with_comments(place: List[Block], plan: Plan) -> List[Block]:
    """Upstream's comments above a statement stay with the first block in its place, unless that brings its own."""
    first = place[0]
    if first.text and (first.change.kind == 'kept' or not own_comments(plan.overlay, first.change.item)):
        comments = upstream_comments(plan.upstream, first.change.node)
        first = Block(first.change, comments + first.text)
    return [first] + place[1:]


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


def place_edits(plan: Plan, scope: ScopePlan, blocks: List[Block]) -> List[Edit]:
    """Replaces the text of one upstream statement, or puts blocks before and after a partial class."""
    upstream = plan.upstream
    node = next(block.change.node for block in blocks if block.change.node)
    start, end = upstream.offset(upstream.leading_line(node)), upstream.end_offset(upstream.last_line(node))
    own = next((i for i, block in enumerate(blocks) if block.text is None), None)
    if own is None:
        text = join(plan, scope, blocks)
        return [Edit(start, end, text) if text else removal(plan, start, end)]
    before, after = blocks[:own], blocks[own + 1:]
    gap = separator(plan, scope)
    edits = [Edit(start, start, join(plan, scope, before) + gap)] if before else []
    return edits + ([Edit(end, end, gap + join(plan, scope, after))] if after else [])


def removal(plan: Plan, start: int, end: int) -> Edit:
    """Removes whole lines and the blank lines above them."""
    above = plan.upstream.data[:start].rstrip()
    return Edit(len(above), end, b'')


def attribute_edits(plan: Plan, scope: ScopePlan, blocks: List[Block]) -> List[Edit]:
    """New class attributes follow upstream's at the head of the class, else the docstring, else the header."""
    if not blocks:
        return []
    upstream, newline, text = plan.upstream, plan.upstream.newline, join(plan, scope, blocks)
    head = docstring(scope.body)
    for statement in scope.body[len(head):]:
        if not bound_name(statement):
            break
        head = [statement]
    if head:
        end = upstream.end_offset(upstream.last_line(head[-1]))
        return [Edit(end, end, newline + text)]
    start = upstream.offset(upstream.leading_line(scope.body[0]))
    gap = 2 if isinstance(scope.body[0], Function) else 1
    return [Edit(start, start, text + gap * newline)]


def end_edits(plan: Plan, scope: ScopePlan, blocks: List[Block]) -> List[Edit]:
    """What has no neighbour upstream stands at the end of the class or module."""
    if not blocks:
        return []
    upstream, text = plan.upstream, join(plan, scope, blocks)
    if not scope.body:
        return [Edit(len(upstream.data), len(upstream.data), text + upstream.newline)]
    last = scope.body[-1]
    end = upstream.end_offset(upstream.last_line(scope.node or last))
    gap = upstream.newline if bound_name(last) and is_assignment(blocks[0]) else separator(plan, scope)
    return [Edit(end, end, gap + text)]


def separator(plan: Plan, scope: ScopePlan) -> bytes:
    return plan.upstream.newline * (2 if scope.node else 3)


def join(plan: Plan, scope: ScopePlan, blocks: List[Block]) -> bytes:
    """Blocks with one blank line between them in a class, two in a module, none between assignments."""
    text, previous = b'', None
    for block in blocks:
        if not block.text:
            continue
        if previous:
            plain = is_assignment(previous) and is_assignment(block)
            text += plan.upstream.newline if plain else separator(plan, scope)
        text, previous = text + block.text, block
    return text


def base_edits(plan: Plan, scope: ScopePlan) -> List[Edit]:
    if scope.node is None:
        return []
    ours, theirs = bases_text(plan.overlay.source, scope.item.node), bases_text(plan.upstream, scope.node)
    if not ours or same_bases(scope.item.node, scope.node):
        return []
    text = with_newline(ours, plan.upstream.newline)
    if theirs:
        start, end = bases_span(plan.upstream, scope.node)
        return [Edit(start, end, text)]
    line = plan.upstream.lines[scope.node.lineno - 1]
    name = re.match(rb'\s*class\s+\w+', line)
    parentheses = re.match(rb'\s*\(\s*\)|', line[name.end():])
    start = plan.upstream.offset(scope.node.lineno, name.end())
    return [Edit(start, start + parentheses.end(), b'(' + text + b')')]


def arguments(node: ast.ClassDef) -> List[ast.AST]:
    return sorted(node.bases + node.keywords, key=lambda argument: (argument.lineno, argument.col_offset))


def same_bases(ours: ast.ClassDef, theirs: ast.ClassDef) -> bool:
    return [ast.dump(a) for a in arguments(ours)] == [ast.dump(a) for a in arguments(theirs)]


def bases_span(source: Source, node: ast.ClassDef) -> tuple:
    first, last = arguments(node)[0], arguments(node)[-1]
    return source.offset(first.lineno, first.col_offset), source.offset(last.end_lineno, last.end_col_offset)


def bases_text(source: Source, node: ast.ClassDef) -> bytes:
    """The text between the parentheses of a class, b'' without bases."""
    return source.data[slice(*bases_span(source, node))] if arguments(node) else b''
