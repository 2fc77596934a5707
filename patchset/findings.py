"""What another release of upstream changed of that on which an overlay stands, class by class.

The statements that `moved_from` moves come along by themselves. Everything else that an overlay stands on has to be
the same code in both releases: the header of a class and its attributes, methods that are replaced or removed, the
header of a split method and the statements that are dropped or named in it, methods and
attributes that the overlay's own lines use, and module constants. Comments, docstrings and layout are no code.
"""
import ast
import difflib
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .overlay import find_anchor
from . import PatchsetError
from .lock import calls_on_self
from .plan import Plan, ScopePlan, Split, make_plan
from .source import Function, Source, bound_name, docstring
from .weave import weave_plan


class Finding(NamedTuple):
    """
    Attributes:
        kind: 'unchanged', 'carried' (only moved statements changed), 'edited' (a person made the overlay fit the other
            release) or 'left' (for a person).
        path: The file.
        name: The class, and what in it.
        why: What is the matter.
        diff: Upstream's change.
    """
    kind: str
    path: str
    name: str = ''
    why: str = ''
    diff: str = ''

    @property
    def place(self) -> str:
        return f'{self.path}:{self.name}' if self.name else self.path

    def __str__(self) -> str:
        line = f'{self.kind}: {self.place}' + (f': {self.why}' if self.why else '')
        return f'{line}\n{self.diff}' if self.diff else line


def compare_releases(
        pinned: bytes,
        theirs: Optional[bytes],
        overlay: bytes,
        path: str,
        keep: Tuple[str, ...] = (),
) -> Tuple[List[Finding], Optional[bytes]]:
    """Args:
        pinned: The file in the release that the overlay was made for.
        theirs: The file in another release, None if there is none.
        keep: Places that a person has looked at.

    Returns:
        A finding for each class, more for one that is left; the woven file, None where something is left.
    """
    if theirs is None:
        return [Finding('left', path, '', 'upstream has no such file')], None
    try:
        plan = make_plan(pinned, overlay, path)
    except PatchsetError as error:
        return edited(theirs, overlay, path, error)
    other = Source(theirs, f'upstream {path}')
    found: List[Finding] = []
    for scope in plan.scopes:
        left = [f for f in changed_in(plan, scope, other, path) if f.place not in keep]
        kind = 'carried' if moved_differ(scope, other) else 'unchanged'
        found += left or ([Finding(kind, path, scope.node.name)] if scope.node else [])
    woven, problems = try_weave(plan, theirs, overlay, path)
    known = {finding.name.split('.')[0] for finding in found if finding.kind == 'left'}
    # no person can keep what does not weave
    found += [p for p in problems if (woven is None or p.place not in keep) and p.name.split('.')[0] not in known]
    return found, None if any(finding.kind == 'left' for finding in found) else woven


def edited(theirs: bytes, overlay: bytes, path: str, error: PatchsetError) -> Tuple[List[Finding], Optional[bytes]]:
    try:
        woven = weave_plan(make_plan(theirs, overlay, path), path)
    except PatchsetError as other:
        raise PatchsetError('', f'{error}; nor does it weave into the other release: {other}') from None
    return [Finding('edited', path)], woven


def try_weave(plan: Plan, theirs: bytes, overlay: bytes, path: str) -> Tuple[Optional[bytes], List[Finding]]:
    try:
        other = make_plan(theirs, overlay, path)
        woven = weave_plan(other, path)
    except PatchsetError as error:
        name, _, why = str(error).removeprefix('upstream ').removeprefix(f'{path}: ').partition(': ')
        return None, [Finding('left', path, name, why) if why else Finding('left', path, '', name)]
    ours, now = kinds(plan), kinds(other)
    return woven, [
        Finding('left', path, name, f'is {ours[name]} in the pinned release, upstream defines it now')
        for name in ours if ours[name] != now.get(name)]


def kinds(plan: Plan) -> Dict[str, str]:
    """What the overlay does with each name."""
    return {f'{scope.prefix}{change.item.name}': change.kind for scope in plan.scopes for change in scope.changes}


def changed_in(plan: Plan, scope: ScopePlan, theirs: Source, path: str) -> Iterator[Finding]:
    body = theirs.tree.body
    name = scope.node.name if scope.node else ''
    if scope.node is not None:
        found = defined(body, name)
        if not isinstance(found, ast.ClassDef):
            yield Finding('left', path, name, 'is gone upstream')
            return
        if header(scope.node) != header(found):
            yield Finding('left', path, name, 'its bases or decorators differ', unified(scope.node, found, 1))
        body = found.body
        names = {bound_name(s) for s in scope.body + body} - {''}
        yield from differing(scope.body, body, names, 'class attribute', path, scope.prefix)
    whole = {change.item.name for change in scope.changes if change.kind in ('replaced', 'removed')}
    calls = {call for change in scope.changes for call in calls_on_self(change.item.node)}
    own = {change.item.name for change in scope.changes} | set(scope.splits)
    yield from differing(scope.body, body, whole, 'replaced by the overlay', path, scope.prefix)
    yield from differing(scope.body, body, calls - own, 'called by the overlay', path, scope.prefix)
    yield from attributes(scope, body, path)
    for source, split in scope.splits.items():
        yield from split_differs(split, defined(body, source), path, f'{scope.prefix}{source}')
    module = plan.upstream.tree.body
    constants = {bound_name(s) for s in module} & names_used(scope)
    yield from differing(module, theirs.tree.body, constants, 'module constant', path, '')


def header(node: ast.ClassDef) -> List[str]:
    return [ast.dump(part) for part in node.decorator_list + node.bases + node.keywords]


def differing(ours: List, theirs: List, names: Set[str], what: str, path: str, prefix: str) -> Iterator[Finding]:
    """Names whose definition is another code in the two releases."""
    for name in sorted(names):
        old, new = defined(ours, name), defined(theirs, name)
        if code(old) != code(new):
            why = f'{what}, ' + ('is gone upstream' if new is None else 'is new upstream' if old is None else 'differs')
            yield Finding('left', path, f'{prefix}{name}', why, unified(old, new))


def attributes(scope: ScopePlan, body: List[ast.stmt], path: str) -> Iterator[Finding]:
    """Attributes that the overlay's own lines read, as `__init__` sets them."""
    read = {
        node.attr for change in scope.changes if change.kind != 'class' for node in ast.walk(change.item.node)
        if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'self'}
    old, new = (assigned(defined(side, '__init__'), read) for side in (scope.body, body))
    for name in sorted(read):
        if old.get(name) != new.get(name):
            texts = [side.get(name, '').splitlines() for side in (old, new)]
            diff = '\n'.join(difflib.unified_diff(*texts, 'pinned', 'other', lineterm='', n=1))
            why = 'read by the overlay, is set in another way'
            yield Finding('left', path, f'{scope.prefix}self.{name}', why, diff)


def assigned(function: Optional[ast.stmt], names: Set[str]) -> Dict[str, str]:
    """The statements that set each attribute of `self`, as code."""
    found: Dict[str, str] = {}
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (below for target in targets for below in ast.walk(target)):
                on_self = isinstance(target, ast.Attribute) and getattr(target.value, 'id', '') == 'self'
                if on_self and target.attr in names:
                    found[target.attr] = found.get(target.attr, '') + ast.unparse(node) + '\n'
    return found


def split_differs(split: Split, theirs: Optional[ast.stmt], path: str, name: str) -> Iterator[Finding]:
    """The header of a split method, and the statements that do not move: dropped ones, and those that are named."""
    if not isinstance(theirs, Function):
        yield Finding('left', path, name, 'is gone upstream')
        return
    if signature(split.source) != signature(theirs):
        yield Finding('left', path, name, 'its signature or decorators differ', unified(split.source, theirs))
        return
    statements = theirs.body[len(docstring(theirs.body)):]
    for index, anchor in standing(split):
        try:
            new = statements[find_anchor(anchor, statements, name)]
        except PatchsetError as error:
            why = str(error).removeprefix(f'{name}: ')
            yield Finding('left', path, name, why, unified(split.source, theirs))
            return
        if ast.dump(new) != ast.dump(split.statements[index]):
            why = f'{anchor!r} is dropped or named, and differs'
            yield Finding('left', path, name, why, unified(split.source, theirs))
            return


def standing(split: Split) -> Iterator[Tuple[int, str]]:
    """Statements that anchors name and that do not move, with the anchor."""
    moved = {index for part in split.parts for index in part.indices}
    for part in split.parts:
        given = part.item.moved
        for anchor in filter(None, (given.start, given.after, given.through, given.before, *given.without)):
            index = find_anchor(anchor, split.statements, '')
            if index not in moved:
                yield index, anchor


def moved_differ(scope: ScopePlan, theirs: Source) -> bool:
    """Whether upstream changed a method that is split, or one that its statements call."""
    found = defined(theirs.tree.body, scope.node.name) if scope.node else theirs.tree
    body = getattr(found, 'body', [])
    calls = {name for split in scope.splits.values() for s in split.statements for name in calls_on_self(s)}
    names = set(scope.splits) | calls
    return any(code(defined(scope.body, name)) != code(defined(body, name)) for name in names)


def signature(node: ast.AST) -> Tuple[str, ...]:
    returns = ast.dump(node.returns) if node.returns else ''
    return (type(node).__name__, ast.dump(node.args), returns, *map(ast.dump, node.decorator_list))


def names_used(scope: ScopePlan) -> Set[str]:
    """Names that the overlay's lines and what moves into them read."""
    nodes: List[ast.AST] = [change.item.node for change in scope.changes if change.kind != 'class']
    nodes += [statement for split in scope.splits.values() for statement in split.statements]
    return {node.id for top in nodes for node in ast.walk(top) if isinstance(node, ast.Name)}


def defined(body: List[ast.stmt], name: str) -> Optional[ast.stmt]:
    """The last statement that defines the name."""
    for statement in reversed(body):
        if bound_name(statement) == name:
            return statement
        if isinstance(statement, Function + (ast.ClassDef,)) and statement.name == name:
            return statement
    return None


def code(node: Optional[ast.stmt]) -> str:
    """A statement as code, without its docstring."""
    if node is None:
        return ''
    if isinstance(node, Function):
        return '\n'.join([*signature(node), *map(ast.dump, node.body[len(docstring(node.body)):])])
    return ast.dump(node)


def unified(old: Optional[ast.stmt], new: Optional[ast.stmt], lines: Optional[int] = None) -> str:
    """Upstream's change of a statement, as code.

    Args:
        lines: How many lines of it to compare, all if None.
    """
    texts = [ast.unparse(node).splitlines()[:lines] if node is not None else [] for node in (old, new)]
    return '\n'.join(difflib.unified_diff(*texts, 'pinned', 'other', lineterm='', n=2))
