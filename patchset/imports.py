"""Merges an overlay's imports into upstream's."""
import ast
import re
import sys
from typing import List, Optional, Set, Tuple

from .edits import Edit
from .errors import PatchsetError
from .overlay import Overlay
from .render import with_newline
from .scope import names_of
from .source import Source, docstring

LINE_LENGTH = 120
Import = (ast.Import, ast.ImportFrom)
ORDER = ('__future__', 'standard library', 'third party', 'timm', 'relative')


def import_edits(upstream: Source, overlay: Overlay) -> List[Edit]:
    edits = []
    theirs = [statement for statement in upstream.tree.body if isinstance(statement, Import)]
    for ours in overlay.imports:
        missing = [alias for alias in ours.names if spelled(alias) not in imported(ours, theirs)]
        if not missing:
            continue
        check_free(missing, upstream, overlay)
        same = [t for t in theirs if same_module(ours, t) and t.names[0].name != '*']
        if same:
            edits += join_names(upstream, same[0], sorted(spelled(alias) for alias in missing))
        else:
            edits.append(insert_import(upstream, overlay, ours, missing, theirs))
    return edits


def same_module(ours: ast.stmt, theirs: ast.stmt) -> bool:
    both = isinstance(ours, ast.ImportFrom) and isinstance(theirs, ast.ImportFrom)
    return both and module_key(ours) == module_key(theirs)


def imported(ours: ast.stmt, theirs: List[ast.stmt]) -> Set[str]:
    """What upstream imports at the top level in the same way: from that module, or as modules."""
    alike = [t for t in theirs if same_module(ours, t) or isinstance(ours, ast.Import) and isinstance(t, ast.Import)]
    return {spelled(alias) for t in alike for alias in t.names}


def check_free(aliases: List[ast.alias], upstream: Source, overlay: Overlay) -> None:
    """An import must not change what a name of upstream's module means."""
    for alias in aliases:
        name = alias.asname or alias.name.split('.')[0]
        clash = [s for s in upstream.tree.body if name in names_of(s)]
        if clash and not (isinstance(clash[0], ast.Import) and not alias.asname and '.' in alias.name):
            raise PatchsetError(
                overlay.source.path, f"imports '{name}', a name that upstream defines itself (line {clash[0].lineno})")


def module_key(statement: ast.stmt) -> str:
    """What an import is sorted by: '.layers', 'torch.nn'."""
    if isinstance(statement, ast.ImportFrom):
        return '.' * statement.level + (statement.module or '')
    return statement.names[0].name


def spelled(alias: ast.alias) -> str:
    return f'{alias.name} as {alias.asname}' if alias.asname else alias.name


def join_names(upstream: Source, statement: ast.ImportFrom, names: List[str]) -> List[Edit]:
    """Further names in the manner of the statement: one per line, or filling lines; sorted where upstream sorts."""
    aliases = statement.names
    present = [spelled(alias) for alias in aliases]
    last = [name for name in names if name > present[-1] or present != sorted(present)]
    edits = names_after(upstream, statement, last) if last else []
    for name in names:
        if name not in last:
            following = next(alias for alias in aliases if spelled(alias) > name)
            start = upstream.offset(following.lineno, following.col_offset)
            indent = upstream.newline + upstream.indent(following.lineno)
            gap = indent if one_per_line(upstream, aliases) else b' '
            edits.append(Edit(start, start, name.encode() + b',' + gap))
    return edits


def one_per_line(upstream: Source, aliases: List[ast.alias]) -> bool:
    alone = all(not upstream.lines[alias.lineno - 1][:alias.col_offset].strip() for alias in aliases)
    return alone and len({alias.lineno for alias in aliases}) == len(aliases)


def names_after(upstream: Source, statement: ast.ImportFrom, names: List[str]) -> List[Edit]:
    last, newline = statement.names[-1], upstream.newline
    end, line_end = upstream.offset(last.end_lineno, last.end_col_offset), upstream.end_offset(last.end_lineno)
    indent = upstream.indent(last.lineno) if last.lineno > statement.lineno else b'    '
    tail = re.fullmatch(rb'(,?)\s*(#.*)?', upstream.data[end:line_end])
    encoded = [name.encode() for name in names]
    if one_per_line(upstream, statement.names) and tail:
        # after the line's comment, with a last comma if there was one
        lines = b','.join(newline + indent + name for name in encoded) + tail[1]
        return ([] if tail[1] else [Edit(end, end, b',')]) + [Edit(line_end, line_end, lines)]
    wrap = (b',' if b'(' in upstream.segment(statement) else b', \\') + newline + indent
    text, width = b'', last.end_col_offset
    for name in encoded:
        fits = not one_per_line(upstream, statement.names) and width + len(name) + 4 <= LINE_LENGTH
        text += (b', ' if fits else wrap) + name
        width = (width + 2 if fits else len(indent)) + len(name)
    return [Edit(end, end, text)]


def insert_import(
        upstream: Source,
        overlay: Overlay,
        ours: ast.stmt,
        missing: List[ast.alias],
        theirs: List[ast.stmt],
) -> Edit:
    if isinstance(ours, ast.Import):
        text = b'import ' + ', '.join(spelled(alias) for alias in missing).encode()
    else:
        text = with_newline(overlay.source.segment(ours), upstream.newline)
    newline = upstream.newline
    before, after = neighbours(ours, theirs)
    if before is not None:
        end = upstream.end_offset(before.end_lineno)
        return Edit(end, end, newline + text)
    if after is not None:
        start = upstream.offset(after.lineno)
        return Edit(start, start, text + newline)
    return insert_alone(upstream, ours, text, theirs)


def neighbours(ours: ast.stmt, theirs: List[ast.stmt]) -> Tuple[Optional[ast.stmt], Optional[ast.stmt]]:
    """The import that ours follows in alphabetical order, among those of its kind, and the one that it precedes."""
    kind = [t for t in theirs if import_kind(t) == import_kind(ours)]
    alike = [t for t in kind if type(t) is type(ours)] or kind
    key = module_key(ours)
    before = [t for t in alike if module_key(t) <= key]
    after = [t for t in alike if module_key(t) > key]
    return max(before, key=module_key, default=None), min(after, key=module_key, default=None)


def import_kind(statement: ast.stmt) -> str:
    """The block in which an import stands: future, standard library, third party, own package, relative."""
    key = module_key(statement)
    top = key.split('.')[0]
    if not top:
        return 'relative'
    if top in ('__future__', 'timm'):
        return top
    return 'standard library' if top in sys.stdlib_module_names else 'third party'


def insert_alone(upstream: Source, ours: ast.stmt, text: bytes, theirs: List[ast.stmt]) -> Edit:
    """The first import of its kind: after the imports of the kinds before it, else after the docstring."""
    rank = ORDER.index(import_kind(ours))
    earlier = [t for t in theirs if ORDER.index(import_kind(t)) < rank]
    newline = upstream.newline
    if earlier or docstring(upstream.tree.body):
        last = (earlier or docstring(upstream.tree.body))[-1]
        together = not earlier or stand_together(last, ours)
        blank_follows = last.end_lineno == len(upstream.lines) or upstream.is_blank(last.end_lineno + 1)
        end = upstream.end_offset(last.end_lineno)
        return Edit(end, end, newline * (1 if together else 2) + text + newline * (not together and not blank_follows))
    body = upstream.tree.body
    if not body:
        return Edit(len(upstream.data), len(upstream.data), text + newline)
    start = upstream.offset(upstream.leading_line(body[0]))
    gap = 1 if isinstance(body[0], Import) and stand_together(body[0], ours) else 2
    return Edit(start, start, text + gap * newline)


def stand_together(one: ast.stmt, other: ast.stmt) -> bool:
    """Whether no blank line parts two imports of different kinds."""
    return {import_kind(one), import_kind(other)} == {'timm', 'relative'}
