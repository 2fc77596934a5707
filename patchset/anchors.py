"""An anchor is the source text of one statement, compared with upstream's as parsed code."""
import ast
import textwrap
from typing import Any, List

from .errors import PatchsetError
from .source import is_ellipsis


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
