"""The pull request, as a series of patches in git's mail format. `git am --3way` takes them, so that git merges."""
import csv
import difflib
import io
import re
import tempfile
import textwrap
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

from . import PatchsetError
from .clone import CONTENTS, COVER, SCRIPTS, Clone, Commit, hand_over, merge_contents
from .plan import make_plan
from .project import Project, Tree
from .steps import EXPORTS, FAMILY_TEST, METHODS, MODELS, Sources, Step, missing_names, steps
from .weave import weave_plan

TEXTS = Path(__file__).with_name('texts')
REGISTRY = 'tests/equivalence/registry.csv'


class Patch(NamedTuple):
    """
    Attributes:
        step: What it is.
        commit: Its message and files.
        added: Lines that it adds.
        removed: Lines that it removes.
        wanted: Whether it is written; a step that stands on others is made on top of them.
    """
    step: Step
    commit: Commit
    added: int
    removed: int
    wanted: bool


class Series(NamedTuple):
    """
    Attributes:
        patches: Those that were asked for, in their order.
        notes: What is left out, and why.
        written: Names of the files.
    """
    patches: List[Patch]
    notes: List[str]
    written: List[str]


def write_series(
        project: Project,
        clone: Path,
        folder: Optional[Path],
        only: Sequence[str] = (),
        cover: bool = False,
) -> Series:
    """Write the series, or a part of it, against a clone that holds the pinned release.

    Args:
        clone: A clone of upstream; nothing is written into it.
        folder: Where the patches go, None for a listing. What it holds of an earlier series is replaced.
        only: Names of steps or of groups of them. Families and fixes stand alone; the others stand on all before them.
        cover: Whether to write a cover letter too.
    """
    builder = Builder(project, Clone(clone))
    patches = builder.build(only)
    wanted = [patch for patch in patches if patch.wanted]
    if folder is None:
        return Series(wanted, builder.notes, [])
    with tempfile.TemporaryDirectory() as temporary:
        text = (TEXTS / 'cover.md').read_text(encoding='utf-8') if cover else None
        names = builder.clone.mail(builder.base, [patch.commit for patch in patches], Path(temporary), text)
        written = [name for name, patch in zip(names, patches) if patch.wanted] + [COVER] * cover
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in [*folder.glob('[0-9][0-9][0-9][0-9]-*.patch'), *folder.glob(COVER)]:
            earlier.unlink()
        for name in written:
            (folder / name).write_bytes((Path(temporary) / name).read_bytes())
    return Series(wanted, builder.notes, written)


def is_chosen(step: Step, only: Sequence[str]) -> bool:
    return step.name in only or step.kind in only


class Builder:
    """Makes the commits."""

    def __init__(self, project: Project, clone: Clone):
        self.project, self.clone = project, clone
        self.version = project.pin['version']
        self.tree: Tree = project.check()
        self.sources = Sources(project.root)
        self.base = clone.base(self.version)
        self.there = clone.tree(self.base)
        overlaid = {path: self.tree.stock[path] for path in self.sources.overlays}
        clone.require(self.base, overlaid, self.version)
        self.models = models_of(project.root / REGISTRY)
        self.notes: List[str] = []

    def build(self, only: Sequence[str]) -> List[Patch]:
        every = steps(self.sources)
        names = {step.name for step in every} | {step.kind for step in every}
        unknown = [name for name in only if name not in names]
        if unknown:
            raise PatchsetError(f'--only {unknown[0]}', f'takes a step or a group of steps: {", ".join(sorted(names))}')
        wanted = [step for step in every if not only or is_chosen(step, only)]
        if only and all(step.kind in ('family', 'fix') for step in wanted):
            every = wanted = self.alone(wanted)
        patches, before = [], {}
        for step in every:
            files = self.files(step, before)
            if files:
                patches.append(self.patch(step, files, before, step in wanted))
                before = {**before, **files}
        self.check_imports(before)
        return patches

    def alone(self, wanted: List[Step]) -> List[Step]:
        """Families and fixes without the steps before them: each comes after the overlays that it imports, and with the
        new modules that those do not bring.
        """
        found, taken = [], set()
        for step in wanted:
            needed = self.sources.needed(step.paths[0])
            for overlay in [path for path in needed if path in self.sources.overlays and path not in taken]:
                modules = [path for path in self.sources.needed(overlay) if path in self.sources.modules]
                own = step if overlay == step.paths[0] else Step(overlay[len(MODELS):-3], 'family', [])
                found.append(own._replace(paths=[overlay, *(path for path in modules if path not in taken)]))
                taken.update(found[-1].paths)
        first = next((step for step in found if step.kind == 'family'), None)
        if first and FAMILY_TEST in self.sources.tests:
            first.paths.append(FAMILY_TEST)
        return found

    def files(self, step: Step, before: Dict[str, bytes]) -> Dict[str, bytes]:
        """Contents of the step's files."""
        files: Dict[str, bytes] = {}
        for path in step.paths:
            if path in self.sources.overlays:
                files[path] = self.tree.changed[path]
            elif path in (*SCRIPTS, CONTENTS) and path not in self.there:
                self.notes.append(f'{path}: left out, the commit that the series starts from has none')
            elif path in SCRIPTS:
                files[path] = hand_over(self.clone.read(self.base, path), path)
            elif path == CONTENTS:
                files[path] = merge_contents(self.sources.contents, self.clone.read(self.base, path))
            elif path in self.sources.tests and any(
                    need in SCRIPTS and need not in self.there for need in self.sources.needed(path)):
                self.notes.append(f'{path}: left out, it runs a script that is left out')
            elif path in self.there:
                raise PatchsetError(path, f'is a new file of the fork, but {self.base[:12]} has it')
            else:
                files[path] = self.sources.text(path)
        return {**files, **self.growing({**before, **files}, before)} if files else files

    def growing(self, available: Dict[str, bytes], before: Dict[str, bytes]) -> Dict[str, bytes]:
        """The files that get lines with each step, where they differ from what the last step left."""
        paths: Set[str] = set(available)
        found = {}
        if EXPORTS in self.sources.overlays:
            overlay = self.sources.exports(EXPORTS, paths)
            stock = self.tree.stock[EXPORTS]
            found[EXPORTS] = weave_plan(make_plan(stock, overlay, EXPORTS), EXPORTS)
        if any(path.startswith(METHODS.rsplit('/', 1)[0]) for path in paths):
            found[METHODS] = self.sources.exports(METHODS, paths)
        old = {**{EXPORTS: self.tree.stock.get(EXPORTS)}, **before}
        return {path: data for path, data in found.items() if data != old.get(path)}

    def check_imports(self, files: Dict[str, bytes]) -> None:
        """The last step leaves no import without what it names."""
        new = {path: data for path, data in files.items() if path.startswith('timm/') and path.endswith('.py')}
        for missing in missing_names(new, {**self.tree.stock, **new}):
            raise PatchsetError(missing.path, f'imports {missing}, which no step brings')

    def patch(self, step: Step, files: Dict[str, bytes], before: Dict[str, bytes], wanted: bool) -> Patch:
        counts = [self.count(path, data, before) for path, data in files.items()]
        added, removed = (sum(pair[i] for pair in counts) for i in (0, 1))
        own = [pair for path, pair in zip(files, counts) if path == step.paths[0]]
        message = self.message(step, files, added, removed, own[0] if own else (0, 0))
        return Patch(step, Commit(message, files), added, removed, wanted)

    def count(self, path: str, data: bytes, before: Dict[str, bytes]) -> tuple:
        if path.endswith('.png'):
            return 0, 0
        old = before.get(path, self.tree.stock.get(path))
        if old is None and path in self.there:
            old = self.clone.read(self.base, path)
        lines = diff_file(old, data, path).split('\n@@', 1)[-1].split('\n')
        return tuple(sum(line.startswith(sign) for line in lines) for sign in '+-')

    def message(self, step: Step, files: Dict[str, bytes], added: int, removed: int, own: tuple) -> str:
        name = step.name if (TEXTS / f'{step.name}.md').is_file() else step.kind
        template = (TEXTS / f'{name}.md').read_text(encoding='utf-8')
        overlay = self.sources.overlays.get(step.paths[0], b'')
        served = [model for model, of in self.models.get(step.name, []) if f'class {of}('.encode() in overlay]
        number = re.search(r'-(\d+)$', step.name)
        values = {
            'name': step.name, 'version': self.version, 'added': added, 'removed': removed, 'models': len(served),
            'part': f', part {number[1]}' if number else '', 'own_added': own[0], 'own_removed': own[1],
            'what': '\n'.join(self.what(step)), 'contents': '\n'.join(self.titles(files)),
        }
        subject, body = template.strip().split('\n', 1)
        return f'{subject.format(**values)}\n\n{body.strip().format(**values)}\n'

    def what(self, step: Step) -> Iterator[str]:
        """What an overlay does, as the lock says it."""
        facts = self.tree.facts['overlays'].get(step.paths[0], {})
        for name, split in facts.get('split', {}).items():
            yield bullet(f'{name}: its statements move into {listed(split["into"])}')
        for name in facts.get('replaced', {}):
            yield bullet(f'{name}: written anew')
        new = [word.split(' ', 1)[1] for word in facts.get('new', [])]
        moved = {f'{name.rsplit(".", 1)[0]}.{part}' for name, split in facts.get('split', {}).items()
                 for part in split['into']}
        if set(new) - moved:
            yield bullet(f'new: {listed(sorted(set(new) - moved))}')

    def titles(self, files: Dict[str, bytes]) -> Iterator[str]:
        """Each file that is new with the first line of its docstring."""
        for path, data in sorted(files.items()):
            if path not in self.tree.stock:
                found = re.match(rb'"""\s*([^\n"]*)', data) if path.endswith('.py') else None
                title = found[1].decode().strip().rstrip('.') if found else ''
                yield bullet(f'{path}: {title}' if title else path)


def bullet(text: str) -> str:
    return textwrap.fill(text, 72, initial_indent='- ', subsequent_indent='  ', break_long_words=False,
                         break_on_hyphens=False)


def listed(names: Sequence[str]) -> str:
    return ' and '.join([', '.join(names[:-1])] * bool(names[:-1]) + [*names[-1:]])


def models_of(registry: Path) -> Dict[str, List[tuple]]:
    """Names and classes of the registered models, by the module that they are of."""
    found: Dict[str, List[tuple]] = {}
    if registry.is_file():
        with open(registry, newline='', encoding='utf-8') as file:
            for row in csv.DictReader(file):
                found.setdefault(row['module'], []).append((row['model'], row['class']))
    return found


def diff_tree(tree: Tree) -> Iterator[str]:
    """One text per file, without the notices."""
    for path in sorted(tree.changed):
        text = diff_file(tree.stock.get(path), tree.changed[path], path)
        if text:
            yield text


def diff_file(old: Optional[bytes], new: bytes, path: str) -> str:
    if old == new:
        return ''
    header = f'diff --git a/{path} b/{path}\n' + ('new file mode 100644\n' if old is None else '')
    before = '/dev/null' if old is None else f'a/{path}'
    hunks = difflib.unified_diff(as_lines(old or b''), as_lines(new), before, f'b/{path}')
    unfinished = '\n\\ No newline at end of file\n'
    return header + ''.join(line if line.endswith('\n') else line + unfinished for line in hunks)


def as_lines(data: bytes) -> List[str]:
    """Lines as `diff` counts them, whatever their bytes."""
    return [line.decode(errors='surrogateescape') for line in io.BytesIO(data)]


def summary(texts: List[str]) -> str:
    # what precedes the first hunk is the header
    lines = [line for text in texts for line in text[text.find('\n@@'):].split('\n')]
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in '+-')
    new = sum('\nnew file mode' in text[:text.find('\n@@')] for text in texts)
    return f'{len(texts)} files ({new} new), {added} lines added, {removed} removed'
