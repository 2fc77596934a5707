"""How the lock and the woven tree differ, said for those who build and for those who update the lock."""
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple


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
                yield (path, name, 'bases' if kind == 'bases' else ''), Entry(WORDS.get(kind, kind), value)


WORDS = {'bases': 'bases', 'watch': 'relied on'}
