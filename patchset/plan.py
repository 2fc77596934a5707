"""What each item of an overlay does in upstream's file. Weaving and the lock both read the plan.

Where an upstream method is split, the plan says which statement moves into which new method. Every statement is moved
once or named as dropped.
"""
import ast
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Set

from . import PatchsetError
from .overlay import Item, MovedFrom, Overlay, find_anchor, moved_from_decorators, read_members
from .protocol import EMBED, STAGES, WHOLE, check_whole, compose
from .source import FunctionNode, Source, docstring, find, find_kind, first_line, is_ellipsis


@dataclass(frozen=True)
class Part:
    """A new method and the statements, as indices, that move into it."""
    item: Item
    indices: List[int]


@dataclass(frozen=True)
class Split:
    """An upstream method in parts, which stand in upstream's order.

    Attributes:
        statements: The top-level statements of `source`, its docstring aside.
    """
    source: FunctionNode
    statements: List[ast.stmt]
    parts: List[Part]

    def moved(self, part: Part) -> List[ast.stmt]:
        return [self.statements[i] for i in part.indices]


@dataclass(frozen=True)
class Change:
    """What an item does upstream.

    Attributes:
        kind: 'added', 'replaced', 'removed', 'part' (of a split), 'redefined' (whole, though upstream's was split) or
            'class' (partial; its members are in a plan of their own).
        node: Upstream's statement at whose place the item stands, None for 'added'.
    """
    kind: str
    item: Item
    node: Optional[ast.stmt] = None


@dataclass(frozen=True)
class ScopePlan:
    """What an overlay does to the module (`node` is None) or to a class of upstream."""
    where: str
    prefix: str
    body: List[ast.stmt]
    node: Optional[ast.ClassDef]
    item: Optional[Item]
    changes: List[Change]
    splits: Dict[str, Split] = field(default_factory=dict)

    @property
    def keeps_whole(self) -> bool:
        """Whether `forward_features` is split and keeps its header, with a body that weaving writes."""
        return bool(self.node) and WHOLE in self.splits and all(change.item.name != WHOLE for change in self.changes)

    def whole_body(self) -> List[str]:
        functions = {change.item.name: change.item.node for change in self.changes if change.item.kind == 'function'}
        halves = {name: functions[name] for name in (EMBED, STAGES) if name in functions}
        return compose(self.splits[WHOLE].source, halves, f'{self.where}{WHOLE}')

    def part(self, item: Item) -> Part:
        return next(part for part in self.splits[item.moved.source].parts if part.item is item)


@dataclass(frozen=True)
class Plan:
    upstream: Source
    overlay: Overlay
    module: ScopePlan
    classes: List[ScopePlan]

    @property
    def scopes(self) -> List[ScopePlan]:
        return [self.module] + self.classes


def make_plan(upstream: bytes, overlay: bytes, path: str) -> Plan:
    source, described = Source(upstream, f'upstream {path}'), Overlay(overlay, path)
    module = plan_scope(source.tree.body, described.items, path)
    classes = [
        plan_scope(change.node.body, read_members(change.item, path), path, change)
        for change in module.changes if change.kind == 'class'
    ]
    plan = Plan(source, described, module, classes)
    check_layout(plan)
    return plan


def plan_scope(body: List[ast.stmt], items: List[Item], path: str, partial: Optional[Change] = None) -> ScopePlan:
    prefix = f'{partial.item.name}.' if partial else ''
    where = f'{path}: {prefix}'
    splits = {}
    for name in dict.fromkeys(item.moved.source for item in items if item.moved):
        source = find_kind(body, name, 'function', f'{where}{name}')
        if source is None:
            raise PatchsetError(f'{where}{name}', f'upstream has no such {"method" if partial else "function"}')
        splits[name] = resolve_split(source, [i for i in items if i.moved and i.moved.source == name], where)
    changes = [plan_item(item, body, where, splits, bool(partial)) for item in items]
    node, item = (partial.node, partial.item) if partial else (None, None)
    return ScopePlan(where, prefix, body, node, item, changes, splits)


def plan_item(
        item: Item,
        body: List[ast.stmt],
        where: str,
        splits: Dict[str, Split],
        partial: bool,
) -> Change:
    here = f'{where}{item.name}'
    if item.moved:
        if item.name != item.moved.source and find(body, item.name, here) is not None:
            raise PatchsetError(here, f'upstream has it already, {item.moved.source} cannot move into it')
        return Change('part', item, splits[item.moved.source].source)
    if item.kind == 'removal':
        node = find(body, item.name, here)
        if node is None:
            raise PatchsetError(here, 'cannot be removed, upstream does not define it')
        if item.name in splits:
            raise PatchsetError(here, "is split, so that it is gone already: leave out the 'del'")
        if partial and item.name == WHOLE:
            raise PatchsetError(here, 'is never removed: write it in the overlay, with upstream\'s header')
        return Change('removed', item, node)
    node = find_kind(body, item.name, item.kind, here)
    if node is None:
        check_new_class(item, here)
        return Change('added', item)
    if partial and item.name == WHOLE:
        check_whole(item, node, here)
    if item.name in splits:
        return Change('redefined', item, node)
    return Change('class' if item.kind == 'class' else 'replaced', item, node)


def check_new_class(item: Item, where: str) -> None:
    members = item.node.body if item.kind == 'class' else []
    if any(moved_from_decorators(member) for member in members if hasattr(member, 'decorator_list')):
        raise PatchsetError(where, 'takes statements of an upstream method, but upstream has no such class')


def check_layout(plan: Plan) -> None:
    """Statements are cut by whole lines, and members of a class must be indented alike on both sides."""
    for scope in plan.scopes:
        touched = [change.node for change in scope.changes if change.node] + scope.body[:bool(scope.node)]
        touched += [s for split in scope.splits.values() for s in docstring(split.source.body) + split.statements]
        check_lines(plan.upstream, touched, scope.where)
        for change in scope.changes:
            where = f'{scope.where}{change.item.name}'
            check_lines(plan.overlay.source, [change.item.node], where)
            if scope.node:
                check_indentation(plan, scope.body[0], change.item.node, where)
            if change.kind == 'part':
                check_lines(plan.overlay.source, change.item.node.body, where)
                check_indentation(plan, change.node.body[0], change.item.node.body[0], where)


def check_lines(source: Source, statements: List[ast.stmt], where: str) -> None:
    for statement in statements:
        if not source.stands_alone(statement):
            raise PatchsetError(
                where.rstrip(': .'), f'line {statement.lineno} of {source.path} holds more than one statement')


def check_indentation(plan: Plan, theirs: ast.stmt, ours: ast.stmt, where: str) -> None:
    expected = plan.upstream.indent(first_line(theirs))
    if plan.overlay.source.indent(first_line(ours)) != expected:
        raise PatchsetError(where, f'must be indented as upstream indents there, by {expected.decode()!r}')


def resolve_split(source: FunctionNode, items: List[Item], where: str) -> Split:
    """Args:
        source: Upstream's method.
        items: All functions of the overlay that take statements of it.
        where: File and scope, for messages.
    """
    statements = source.body[len(docstring(source.body)):]
    parts = [Part(item, resolve_range(item.moved, statements, f'{where}{item.name}')) for item in items]
    account(Split(source, statements, parts), f'{where}{source.name}', where)
    for part in parts:
        check_returns(part, statements, where)
    return Split(source, statements, sorted(parts, key=lambda part: part.indices[0]))


def resolve_range(moved: MovedFrom, statements: List[ast.stmt], where: str) -> List[int]:
    found = anchor_indices(moved, statements, where)
    first = found.get('start', found.get('after', -1) + 1)
    last = found.get('through', found.get('before', len(statements)) - 1)
    if first > last:
        raise PatchsetError(where, f'its range of {moved.source} is empty')
    dropped = {find_anchor(anchor, statements, where) for anchor in moved.without}
    outside = [i for i in dropped if not first <= i <= last]
    if outside:
        raise PatchsetError(where, f"without names line {statements[outside[0]].lineno}, which is outside its range")
    indices = [i for i in range(first, last + 1) if i not in dropped]
    if not indices:
        raise PatchsetError(where, f'its range of {moved.source} is empty')
    return indices


def anchor_indices(moved: MovedFrom, statements: List[ast.stmt], where: str) -> Dict[str, int]:
    anchors = {name: getattr(moved, name) for name in ('start', 'after', 'through', 'before')}
    return {name: find_anchor(text, statements, where) for name, text in anchors.items() if text is not None}


def account(split: Split, where: str, scope: str) -> None:
    """Every statement is moved once, or named as dropped."""
    owner: Dict[int, Item] = {}
    named: Set[int] = set()
    for part in split.parts:
        moved = part.item.moved
        named.update(anchor_indices(moved, split.statements, f'{scope}{part.item.name}').values())
        named.update(find_anchor(anchor, split.statements, where) for anchor in moved.without)
        for i in part.indices:
            if i in owner:
                raise PatchsetError(
                    where, f'{quote(split.statements[i])} moves twice, to {owner[i].name} and to {part.item.name}')
            owner[i] = part.item
    for i, statement in enumerate(split.statements):
        if i not in owner and i not in named:
            raise PatchsetError(
                where,
                f"{quote(statement)} is left over: move it, or name it as dropped in 'after', 'before' or 'without'",
            )


def check_returns(part: Part, statements: List[ast.stmt], where: str) -> None:
    """A `return` that moves must still end what it ended: nothing may come after the part."""
    if part.indices[-1] == len(statements) - 1 and is_ellipsis(part.item.node.body[-1]):
        return
    for i in part.indices:
        for node in own_nodes(statements[i]):
            if isinstance(node, ast.Return):
                raise PatchsetError(
                    f'{where}{part.item.name}',
                    f"moves 'return' in line {node.lineno} of upstream, but more of {part.item.moved.source} follows",
                )


def own_nodes(node: ast.AST) -> List[ast.AST]:
    """The node and all below it that run in the same function."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
        return []
    return [node] + [below for child in ast.iter_child_nodes(node) for below in own_nodes(child)]


def quote(statement: ast.stmt) -> str:
    text = ast.unparse(statement).splitlines()[0]
    return f"'{text}' (line {statement.lineno})"
