"""Finds a name among the statements of upstream's module or class."""
import ast
from typing import Iterator, List, Optional

from .errors import PatchsetError
from .source import Function, bound_name

KINDS = {'function': Function, 'class': (ast.ClassDef,), 'assignment': (ast.Assign, ast.AnnAssign)}


def find(body: List[ast.stmt], name: str, where: str) -> Optional[ast.stmt]:
    """The one statement that defines the name, None if there is none."""
    found = [statement for statement in body if name in names_of(statement)]
    if len(found) > 1:
        raise PatchsetError(
            where, f'upstream defines it {len(found)} times (a setter or an overload?), which cannot be overlaid')
    if not found:
        if any(name in names_of(statement) for statement in conditional(body)):
            raise PatchsetError(where, 'upstream defines it under a condition, which cannot be overlaid')
        return None
    if isinstance(found[0], (ast.Import, ast.ImportFrom)):
        raise PatchsetError(where, 'upstream imports this name, choose another')
    return found[0]


def find_kind(body: List[ast.stmt], name: str, kind: str, where: str) -> Optional[ast.stmt]:
    """As `find`, the definition must be of that kind: 'function', 'class' or 'assignment'."""
    node = find(body, name, where)
    if node is not None and not (isinstance(node, KINDS[kind]) and (kind != 'assignment' or bound_name(node))):
        raise PatchsetError(where, f'is not a plain {kind} upstream (line {node.lineno})')
    return node


def names_of(statement: ast.stmt) -> List[str]:
    """Names that a statement itself binds, those of its nested statements aside."""
    if isinstance(statement, Function + (ast.ClassDef,)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split('.')[0] for alias in statement.names]
    targets = getattr(statement, 'targets', None) or [getattr(statement, 'target', None)]
    return [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]


def conditional(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements nested in `if`, `try`, `with` and loops, which run in the same scope."""
    for statement in body:
        if isinstance(statement, Function + (ast.ClassDef,)):
            continue
        for field in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
            nested = getattr(statement, field, [])
            yield from nested
            yield from conditional(nested)
