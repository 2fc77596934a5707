"""`upstream.lock.json`: which release of upstream the overlays stand on, and on which of its texts.

A difference between the lock and the woven tree is said in two ways: as a problem, for a build that refuses, and as
news, for whoever updates the lock.
"""
import ast
import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from . import PatchsetError
from .plan import Plan, ScopePlan
from .source import Function, Source, first_line
from .weave import bases_text, same_bases

FILE = 'upstream.lock.json'
PIN = ('name', 'sha256', 'version', 'wheel')

KIND_WORDS = {'bases': 'bases', 'watch': 'relied on'}


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


class Entry(NamedTuple):
    """What the lock says of a name: 'new class', 'replaced', 'split', ..., and of the upstream text under it."""
    kind: str
    value: Any


class Difference(NamedTuple):
    """
    Attributes:
        path: The file.
        name: The class, method, function or attribute, '' for the file itself.
        old: What the lock says, None if nothing.
        new: What is so now.
    """
    path: str
    name: str
    old: Optional[Entry]
    new: Optional[Entry]

    @property
    def where(self) -> str:
        return f'{self.path}: {self.name}' if self.name else self.path

    @property
    def problem(self) -> str:
        """What is wrong, for a build that refuses."""
        old, new = self.old, self.new
        if old is None:
            return f'{self.where}: the lock does not list this {new.kind}'
        if new is None:
            return f'{self.where}: the lock lists this {old.kind}, but it is gone'
        if old.kind.startswith('new ') and not new.kind.startswith('new '):
            return f'{self.where}: is a {old.kind} in the lock, but upstream defines it too'
        if old.kind != new.kind:
            return f'{self.where}: is {old.kind} in the lock, but {new.kind} now'
        if old.kind == 'split' and old.value['text'] == new.value['text']:
            return f'{self.where}: is split in another way than in the lock'
        return f"{self.where}: upstream differs from the lock, which the overlay stands on ({old.kind})"

    @property
    def news(self) -> str:
        """What an update of the lock changes; new names stand out, since a misspelt one is a new one."""
        if self.old is None:
            return f'{"NEW " if self.new.kind.startswith("new ") else ""}{self.where}: {self.new.kind}'
        if self.new is None:
            return f'{self.where}: no longer {self.old.kind}'
        return f'{self.where}: {self.old.kind}, now {self.new.kind}' if self.old.kind != self.new.kind else (
            f'{self.where}: {self.new.kind}, changed')


def compare(locked: Dict[str, Any], actual: Dict[str, Any]) -> List[Difference]:
    old, new = dict(entries(locked)), dict(entries(actual))
    return [
        Difference(path, name, old.get((path, name, group)), new.get((path, name, group)))
        for path, name, group in sorted(set(old) | set(new))
        if old.get((path, name, group)) != new.get((path, name, group))
    ]


def entries(lock: Dict[str, Any]) -> Iterator[Tuple[Tuple[str, str, str], Entry]]:
    """Keyed by path, name and group: a name is changed in one way, and its bases or text may be relied on besides."""
    for path in lock.get('new_files', []):
        yield (path, '', ''), Entry('new file', None)
    for path, facts in lock.get('overlays', {}).items():
        yield (path, '', ''), Entry('overlay', None)
        for word in facts.get('new', []):
            kind, name = word.split()
            yield (path, name, ''), Entry(f'new {kind}', None)
        for kind in ('replaced', 'removed', 'split', 'bases', 'watch'):
            for name, value in facts.get(kind, {}).items():
                # a method that is watched now and replaced next is one change
                yield (path, name, 'bases' if kind == 'bases' else ''), Entry(KIND_WORDS.get(kind, kind), value)
