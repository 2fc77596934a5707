"""What an overlay says, read without looking at upstream.

An anchor, which names one statement of upstream's, is compared with it as parsed code.
"""
import ast
import textwrap
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

from . import PatchsetError
from .source import Function, Source, bound_name, docstring, first_line, is_ellipsis

HEADER = b'# Overlay:'


@dataclass(frozen=True)
class MovedFrom:
    """The arguments of `@moved_from`: a range of the top-level statements of the upstream method `source`."""
    source: str
    start: Optional[str] = None
    after: Optional[str] = None
    through: Optional[str] = None
    before: Optional[str] = None
    without: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One thing that an overlay says about a scope, the module or a class.

    Attributes:
        kind: 'function', 'class', 'assignment' or 'removal'.
        moved: For a function that takes upstream's statements.
    """
    kind: str
    name: str
    node: ast.stmt
    moved: Optional[MovedFrom] = None


class Overlay:
    """An overlay's imports, and its items in their order."""

    def __init__(self, data: bytes, path: str):
        if not data.startswith(HEADER):
            raise PatchsetError(path, f"exists upstream; an overlay's first line must start with '{HEADER.decode()}'")
        self.source = Source(data, path)
        body = self.source.tree.body
        if docstring(body):
            raise PatchsetError(path, 'an overlay has no docstring, write comments')
        imports = (ast.Import, ast.ImportFrom)
        self.imports = [statement for statement in body if isinstance(statement, imports)]
        self.items = read_scope([s for s in body if not isinstance(s, imports)], path, '')
        self.header_lines = 1
        while self.header_lines < len(self.source.lines) and self.source.is_comment(self.header_lines + 1):
            self.header_lines += 1

    def block(self, item: Item) -> bytes:
        """Text of an item, with its comments and without `@moved_from`."""
        first, last = self.leading_line(item), self.source.last_line(item.node)
        lines = range(first, last + 1)
        if item.moved:
            decorator = moved_from_decorators(item.node)[0]
            lines = [line for line in lines if not decorator.lineno <= line <= decorator.end_lineno]
        return b''.join(self.source.lines[line - 1] for line in lines).rstrip(b'\r\n')

    def leading_line(self, item: Item) -> int:
        return min(max(self.source.leading_line(item.node), self.header_lines + 1), first_line(item.node))


def read_scope(statements: List[ast.stmt], path: str, prefix: str) -> Tuple[Item, ...]:
    items = []
    for statement in statements:
        items += read_statement(statement, path, prefix)
    names = [item.name for item in items]
    for name in names:
        if names.count(name) > 1:
            raise PatchsetError(path, f'{prefix}{name}: defined twice; setters and overloads cannot be overlaid')
    return tuple(items)


def read_statement(statement: ast.stmt, path: str, prefix: str) -> List[Item]:
    if isinstance(statement, Function):
        return [Item('function', statement.name, statement, read_moved_from(statement, path, prefix))]
    if isinstance(statement, ast.ClassDef):
        return [read_class(statement, path, prefix)]
    if bound_name(statement):
        return [Item('assignment', bound_name(statement), statement)]
    if isinstance(statement, ast.Delete) and all(isinstance(target, ast.Name) for target in statement.targets):
        return [Item('removal', target.id, statement) for target in statement.targets]
    raise PatchsetError(
        path,
        f"line {statement.lineno}: an overlay holds imports, classes, functions, 'name = value' and 'del name' "
        'only, none of them under a condition',
    )


def read_class(node: ast.ClassDef, path: str, prefix: str) -> Item:
    if prefix:
        raise PatchsetError(path, f'{prefix}{node.name}: a class inside a class cannot be overlaid')
    # a new class may hold anything, so that its members are read only once upstream is known to have the class
    return Item('class', node.name, node)


def read_members(item: Item, path: str) -> Tuple[Item, ...]:
    """The members of a partial class."""
    node = item.node
    if node.decorator_list:
        raise PatchsetError(path, f"{item.name}: upstream's class keeps its own decorators, leave them out")
    if docstring(node.body):
        raise PatchsetError(path, f'{item.name}: a partial class has no docstring, write a comment')
    body = [s for s in node.body if not (isinstance(s, ast.Pass) or is_ellipsis(s))]
    return read_scope(body, path, f'{item.name}.')


def moved_from_decorators(node: ast.stmt) -> List[ast.expr]:
    return [d for d in node.decorator_list if 'moved_from' in (name_of(d), name_of(getattr(d, 'func', None)))]


def name_of(node: Optional[ast.AST]) -> str:
    return node.id if isinstance(node, ast.Name) else ''


def read_moved_from(node: ast.stmt, path: str, prefix: str) -> Optional[MovedFrom]:
    decorators = moved_from_decorators(node)
    if not decorators:
        return None
    where = f'{prefix}{node.name}'
    if len(decorators) > 1:
        raise PatchsetError(path, f'{where}: takes one @moved_from')
    moved = moved_from_arguments(decorators[0], path, where)
    if moved.start is not None and moved.after is not None:
        raise PatchsetError(path, f'{where}: @moved_from takes start or after, not both')
    if moved.through is not None and moved.before is not None:
        raise PatchsetError(path, f'{where}: @moved_from takes through or before, not both')
    count = sum(map(is_ellipsis, node.body))
    if count != 1:
        raise PatchsetError(path, f"{where}: needs exactly one '...' where upstream's statements land, has {count}")
    return moved


def moved_from_arguments(decorator: ast.expr, path: str, where: str) -> MovedFrom:
    try:
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords}
        source, = (ast.literal_eval(argument) for argument in decorator.args)
        moved = MovedFrom(source, **keywords)
        without = (moved.without,) if isinstance(moved.without, str) else tuple(moved.without)
        anchors = (moved.start, moved.after, moved.through, moved.before)
        if not isinstance(source, str) or not all(isinstance(a, str) for a in without + tuple(filter(None, anchors))):
            raise TypeError
    except (AttributeError, TypeError, ValueError):
        raise PatchsetError(
            path,
            f'{where}: @moved_from takes the name of a method, and as strings start or after, through or before, '
            'and a tuple without',
        ) from None
    return MovedFrom(source, *anchors, without)


def find_anchor(anchor: str, statements: List[ast.stmt], where: str) -> int:
    """Index of the one statement that the anchor names."""
    pattern = parse_anchor(anchor, where)
    found = [i for i, statement in enumerate(statements) if matches(pattern, statement)]
    if not found:
        raise PatchsetError(where, f'upstream has no statement {anchor!r} at the top level of the method')
    if len(found) > 1:
        lines = ' and '.join(str(statements[i].lineno) for i in found)
        raise PatchsetError(where, f'the anchor {anchor!r} is ambiguous, upstream has it in lines {lines}')
    return found[0]


def parse_anchor(anchor: str, where: str) -> ast.stmt:
    try:
        statements = ast.parse(textwrap.dedent(anchor)).body
    except SyntaxError as error:
        raise PatchsetError(where, f'the anchor {anchor!r} does not parse: {error.msg}') from None
    if len(statements) != 1:
        raise PatchsetError(where, f'the anchor {anchor!r} must be exactly one statement')
    return statements[0]


def matches(pattern: Any, node: Any) -> bool:
    """Whether both are the same code; a body of only `...` in the pattern stands for any body."""
    if isinstance(pattern, list):
        if not isinstance(node, list):
            return False
        if is_open(pattern):
            return bool(node)
        return len(pattern) == len(node) and all(map(matches, pattern, node))
    if not isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and pattern == node
    return type(pattern) is type(node) and all(
        matches(getattr(pattern, field), getattr(node, field, None))
        for field in pattern._fields if field not in ('kind', 'type_comment') and not is_free(pattern, field)
    )


def is_open(body: Any) -> bool:
    return isinstance(body, list) and len(body) == 1 and isinstance(body[0], ast.stmt) and is_ellipsis(body[0])


def is_free(pattern: ast.AST, field: str) -> bool:
    """Whether the field was left out after a body of `...`, so that anything may stand there."""
    return (
        field in ('orelse', 'finalbody', 'handlers')
        and getattr(pattern, field) == []
        and is_open(getattr(pattern, 'body', None))
    )
