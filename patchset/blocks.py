"""Arranges the texts of a scope: which stand together, for which upstream statement, in which order."""
from dataclasses import dataclass
from typing import List, Optional, Tuple

from .protocol import WHOLE, render_whole
from .overlay import Item
from .plan import Change, Plan, ScopePlan
from .render import own_comments, render_item, render_part, upstream_comments


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
