"""`upstream.lock.json`: which upstream this patch set stands on, and on what of it."""
import ast
import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any, Dict, Iterator, Set

from .bases import bases_text, same_bases
from .errors import PatchsetError
from .plan import Plan, ScopePlan
from .source import Function, Source, first_line

FILE = 'upstream.lock.json'
PIN = ('name', 'sha256', 'version', 'wheel')


def read_lock(path: Path) -> Dict[str, Any]:
    try:
        lock = json.loads(path.read_text(encoding='utf-8'))
        if not all(isinstance(lock['upstream'][key], str) for key in PIN):
            raise TypeError
        return lock
    except FileNotFoundError:
        raise PatchsetError(str(path), "is missing; it pins upstream's wheel") from None
    except (ValueError, KeyError, TypeError):
        raise PatchsetError(str(path), f"is not a lock: needs an 'upstream' section with {', '.join(PIN)}") from None


def dump_lock(lock: Dict[str, Any]) -> str:
    return json.dumps(lock, indent=2, sort_keys=True) + '\n'


def describe(plan: Plan) -> Dict[str, Any]:
    """What an overlay changes, and hashes of the upstream text that it stands on or relies on."""
    facts: Dict[str, Any] = {kind: {} for kind in ('replaced', 'removed', 'split', 'bases', 'watch')}
    facts['new'] = sorted(
        f'{change.item.kind} {scope.prefix}{change.item.name}'
        for scope in plan.scopes for change in scope.changes if change.kind == 'added'
    )
    for scope in plan.scopes:
        for change in scope.changes:
            if change.kind in ('replaced', 'removed'):
                facts[change.kind][f'{scope.prefix}{change.item.name}'] = digest(plan.upstream, change.node)
        for name in scope.splits:
            facts['split'][f'{scope.prefix}{name}'] = describe_split(plan, scope, name)
        if scope.node is not None:
            facts['watch'].update(watch(plan, scope))
            if scope.item.node.bases and not same_bases(scope.item.node, scope.node):
                facts['bases'][scope.item.name] = bases_text(plan.upstream, scope.node).decode()
    return {kind: entries for kind, entries in facts.items() if entries}


def describe_split(plan: Plan, scope: ScopePlan, name: str) -> Dict[str, Any]:
    split = scope.splits[name]
    again = any(change.kind == 'redefined' and change.item.name == name for change in scope.changes)
    into = [part.item.name for part in split.parts]
    return {'into': into, 'defined_again': again, 'text': digest(plan.upstream, split.source)}


def digest(source: Source, node: ast.stmt) -> str:
    """Hash of a statement's text, blank lines, indentation and line ends aside; comments count."""
    text = source.text(first_line(node), source.last_line(node)).decode()
    lines = textwrap.dedent(text.replace('\r\n', '\n')).split('\n')
    normal = '\n'.join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(normal.encode()).hexdigest()[:16]


def watch(plan: Plan, scope: ScopePlan) -> Dict[str, str]:
    """Upstream's methods of the class that the overlay relies on and leaves alone: `__init__`, and what it calls."""
    theirs = {statement.name: statement for statement in scope.body if isinstance(statement, Function)}
    changed = {change.item.name for change in scope.changes} | set(scope.splits)
    used = {'__init__'}.union(*(calls_on_self(node) for node in running(scope)))
    return {
        f'{scope.prefix}{name}': digest(plan.upstream, theirs[name])
        for name in sorted((used & set(theirs)) - changed)
    }


def running(scope: ScopePlan) -> Iterator[ast.AST]:
    """The overlay's functions, and the statements that move into them."""
    for change in scope.changes:
        yield change.item.node
    for split in scope.splits.values():
        for part in split.parts:
            yield from split.moved(part)


def calls_on_self(node: ast.AST) -> Set[str]:
    return {
        call.func.attr for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name) and call.func.value.id == 'self'
    }


