"""Turns arranged blocks into edits, with the blank lines between them."""
from typing import List

from .blocks import Block, is_assignment
from .edits import Edit
from .plan import Plan, ScopePlan
from .source import Function, bound_name, docstring


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
