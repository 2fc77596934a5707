"""The bases of a partial class, as written in the overlay, take the place of upstream's."""
import ast
import re
from typing import List

from .edits import Edit
from .plan import Plan, ScopePlan
from .render import with_newline
from .source import Source


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
