"""Which statements of an upstream method move into which new method; every one is accounted for."""
import ast
from dataclasses import dataclass
from typing import Dict, List, Set

from .anchors import find_anchor
from .errors import PatchsetError
from .overlay import Item, MovedFrom
from .source import FunctionNode, docstring, is_ellipsis


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
