"""Merges an overlay three ways, method by method: the pinned upstream, the overlay, another version of upstream.

A method that the overlay replaces is merged as text. Of a method that it splits, upstream's statements come along by
themselves; what may need a new text is the anchor, where upstream changed the very statement that it names.
"""
import ast
import difflib
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from .anchors import find_anchor
from .changes import Changed
from .edits import Edit, apply_edits
from .errors import PatchsetError
from .overlay import Item, moved_from_decorators
from .plan import Plan
from .render import with_newline
from .source import Source, docstring


def merge_overlay(plan: Plan, theirs: Source, changed: List[Changed]) -> Tuple[bytes, List[str]]:
    """Args:
        plan: The overlay on the pinned upstream.
        changed: What the other version changed under it.

    Returns:
        The overlay for the other version, and the names of the methods whose text in it is another now.
    """
    edits: List[Edit] = []
    merged = []
    for change in changed:
        if change.node is None:
            continue
        if change.kind == 'replaced':
            new = merge_replaced(plan, theirs, change)
        elif change.kind == 'split':
            new = move_anchors(plan, change)
        else:
            continue
        if new:
            edits += new
            merged.append(change.name)
    return apply_edits(plan.overlay.source.data, edits), merged


def merge_replaced(plan: Plan, theirs: Source, change: Changed) -> List[Edit]:
    """The overlay's text of a whole method with what upstream changed in its own, nothing where they conflict."""
    ours = next(c for c in change.scope.changes if f'{change.scope.prefix}{c.item.name}' == change.name)
    source = plan.overlay.source
    first, last = plan.overlay.leading_line(ours.item), source.last_line(ours.item.node)
    text = merge_texts(statement_text(plan.upstream, ours.node), source.text(first, last),
                       statement_text(theirs, change.node))
    return [] if text is None else [Edit(source.offset(first), source.end_offset(last), text)]


def statement_text(source: Source, node: ast.stmt) -> bytes:
    return source.text(source.leading_line(node), source.last_line(node))


def merge_texts(base: bytes, ours: bytes, theirs: bytes) -> Optional[bytes]:
    """Three-way merge by lines, None where both sides changed the same ones."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ('ours', 'base', 'theirs')]
        for file, text in zip(files, (ours, base, theirs)):
            file.write_bytes(with_newline(text, b'\n') + b'\n')
        result = subprocess.run(['git', 'merge-file', '-p', '-q', *map(str, files)], capture_output=True)
    return None if result.returncode else result.stdout.rstrip(b'\n')


def move_anchors(plan: Plan, change: Changed) -> List[Edit]:
    """New texts for the anchors whose statement upstream replaced by another one."""
    split = change.scope.splits[change.name[len(change.scope.prefix):]]
    statements = change.node.body[len(docstring(change.node.body)):]
    partner = align(split.statements, statements)
    edits = []
    for part in split.parts:
        for constant in anchor_constants(part.item):
            index = find_anchor(constant.value, split.statements, change.name)
            if not stands(constant.value, statements) and index in partner:
                edits.append(new_anchor(plan.overlay.source, constant, statements[partner[index]]))
    return edits


def align(ours: List[ast.stmt], theirs: List[ast.stmt]) -> Dict[int, int]:
    """Which simple statement took the place of which: those between statements that both have, if equally many."""
    texts = [[ast.dump(statement) for statement in side] for side in (ours, theirs)]
    pairs = {}
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if tag == 'replace' and i_end - i == j_end - j:
            pairs.update(zip(range(i, i_end), range(j, j_end)))
    return {i: j for i, j in pairs.items() if not hasattr(theirs[j], 'body')}


def stands(anchor: str, statements: List[ast.stmt]) -> bool:
    try:
        find_anchor(anchor, statements, '')
    except PatchsetError:
        return False
    return True


def anchor_constants(item: Item) -> List[ast.Constant]:
    decorator = moved_from_decorators(item.node)[0]
    return [
        node for keyword in decorator.keywords for node in ast.walk(keyword.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def new_anchor(source: Source, constant: ast.Constant, statement: ast.stmt) -> Edit:
    start = source.offset(constant.lineno, constant.col_offset)
    end = source.offset(constant.end_lineno, constant.end_col_offset)
    return Edit(start, end, repr(ast.unparse(statement)).encode())
