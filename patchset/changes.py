"""What another version of upstream changed under an overlay, name by name."""
import ast
from typing import Iterator, List, NamedTuple, Optional

from .bases import bases_text
from .lock import digest, watch
from .plan import Plan, ScopePlan
from .source import Function, Source, bound_name


class Changed(NamedTuple):
    """
    Attributes:
        kind: What the overlay does to it: 'replaced', 'removed', 'split', 'bases', 'class' or 'relied on'.
        name: Class and method, as the lock spells them.
        scope: The module or class in which the overlay changes it.
        node: The statement in the other version, None if it is gone.
    """
    kind: str
    name: str
    scope: ScopePlan
    node: Optional[ast.stmt]


def changed_under(plan: Plan, theirs: Source) -> List[Changed]:
    """Args:
        plan: The overlay on the pinned upstream.
        theirs: The file in another version of upstream.
    """
    return [change for scope in plan.scopes for change in changed_in(plan, scope, theirs)]


def changed_in(plan: Plan, scope: ScopePlan, theirs: Source) -> Iterator[Changed]:
    body = theirs.tree.body
    if scope.node is not None:
        found = named(body, scope.node.name)
        if not isinstance(found, ast.ClassDef):
            yield Changed('class', scope.node.name, scope, None)
            return
        if bases_text(theirs, found) != bases_text(plan.upstream, scope.node):
            yield Changed('bases', scope.node.name, scope, found)
        body = found.body
    for name, kind in relied_on(plan, scope).items():
        ours, node = named(scope.body, name), named(body, name)
        if node is None or digest(theirs, node) != digest(plan.upstream, ours):
            yield Changed(kind, f'{scope.prefix}{name}', scope, node)


def relied_on(plan: Plan, scope: ScopePlan) -> dict:
    """How the overlay uses the names that upstream defines in a scope."""
    kinds = {change.item.name: change.kind for change in scope.changes if change.kind in ('replaced', 'removed')}
    kinds.update({name: 'split' for name in scope.splits})
    if scope.node is not None:
        kinds.update({name[len(scope.prefix):]: 'relied on' for name in watch(plan, scope)})
    return kinds


def named(body: List[ast.stmt], name: str) -> Optional[ast.stmt]:
    """The last statement that defines the name."""
    for statement in reversed(body):
        if bound_name(statement) == name:
            return statement
        if isinstance(statement, Function + (ast.ClassDef,)) and statement.name == name:
            return statement
    return None
