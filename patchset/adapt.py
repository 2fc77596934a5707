"""An overlay on a version of upstream that is not the pinned one."""
import ast
from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional, Set

from .changes import Changed, changed_under, named
from .errors import PatchsetError
from .lock import calls_on_self, describe, running
from .merge import merge_overlay
from .plan import Plan, make_plan
from .source import Function, Source, docstring
from .weave import weave_plan


class Note(NamedTuple):
    """One line for the person who has to look.

    Attributes:
        kind: 'carried' (upstream's change comes along with `moved_from`), 'merged', 'relied on' (upstream changed what
            the overlay leaves alone and uses), 'edited' (by a person), 'left' (to be done by hand), 'new'
            (models that no overlay serves) or 'missing' (a name that a new module imports).
    """
    kind: str
    path: str
    text: str

    def __str__(self) -> str:
        return f'{self.kind + ":":10} {self.path}: {self.text}'


@dataclass(frozen=True)
class Adapted:
    """
    Attributes:
        overlay: The overlay, merged.
        woven: The woven file, None where something is left to be done by hand.
    """
    overlay: bytes
    woven: Optional[bytes]
    notes: List[Note] = field(default_factory=list)


def adapt(pinned: bytes, theirs: Optional[bytes], overlay: bytes, path: str, keep: tuple = ()) -> Adapted:
    """Args:
        pinned: The file in the pinned upstream, on which the overlay stands.
        theirs: The file in another version, None if there is none.
        keep: Names of methods, with their path, whose text in the overlay is right for the other version.
    """
    if theirs is None:
        return Adapted(overlay, None, [Note('left', path, 'upstream has no such file')])
    try:
        plan = make_plan(pinned, overlay, path)
    except PatchsetError as error:
        return edited(theirs, overlay, path, error)
    if theirs == pinned:
        return Adapted(overlay, weave_plan(plan, path))
    other = Source(theirs, f'upstream {path}')
    changed = [c for c in changed_under(plan, other) if not (c.kind != 'relied on' and f'{path}:{c.name}' in keep)]
    merged, names = merge_overlay(plan, other, changed)
    woven, used, more = None, None, []
    try:
        new_plan = make_plan(theirs, merged, path)
        woven, used = weave_plan(new_plan, path), calls(new_plan)
        more = [Note('left', path, f'{name}: upstream defines it too') for name in taken(plan, new_plan)]
    except PatchsetError as error:
        more = [Note('left', path, str(error).removeprefix(f'{path}: '))]
    notes = [Note(verdict(change, names, used), path, describe_change(change)) for change in changed] + more
    return Adapted(merged, None if any(note.kind == 'left' for note in notes) else woven, notes)


def edited(theirs: bytes, overlay: bytes, path: str, error: PatchsetError) -> Adapted:
    """An overlay that a person has made fit the other version, so that it does not weave into the pinned one."""
    try:
        woven = weave_plan(make_plan(theirs, overlay, path), path)
    except PatchsetError as other:
        raise PatchsetError('', f'{error}; nor does it weave into the other version: {other}') from None
    return Adapted(overlay, woven, [Note('edited', path, 'fits the other version, and no more the pinned one')])


def calls(plan: Plan) -> Set[str]:
    """Methods of `self` that the overlay and what moves into it call, with their class."""
    return {f'{scope.prefix}{name}' for scope in plan.scopes for node in running(scope) for name in calls_on_self(node)}


def verdict(change: Changed, merged: List[str], used: Optional[Set[str]]) -> str:
    """Args:
        merged: Names whose text in the overlay is another now.
        used: What the overlay calls in the other version, None if it does not weave there.
    """
    if change.kind == 'relied on':
        return 'relied on' if change.node is not None or used is None or change.name not in used else 'left'
    if change.name in merged:
        return 'merged'
    if change.kind == 'split' and change.node is not None:
        return 'left' if used is None else 'carried'
    return 'carried' if same_code(change) else 'left'


def same_code(change: Changed) -> bool:
    """Whether upstream changed comments, docstring or annotations of a function only."""
    ours = named(change.scope.body, change.name[len(change.scope.prefix):])
    if not isinstance(ours, Function) or not isinstance(change.node, Function):
        return False
    return code(ours) == code(change.node)


def code(node: ast.stmt) -> List[str]:
    return [ast.dump(statement) for statement in node.body[len(docstring(node.body)):]]


def describe_change(change: Changed) -> str:
    if change.node is None:
        return f'{change.name}: is gone upstream'
    return f'{change.name}: differs upstream' + (' (its bases)' if change.kind == 'bases' else '')


def taken(plan: Plan, other: Plan) -> List[str]:
    """Names that the overlay adds to the pinned upstream and that the other version has of its own."""
    ours, theirs = describe(plan).get('new', []), describe(other).get('new', [])
    return sorted(set(ours) - set(theirs))
