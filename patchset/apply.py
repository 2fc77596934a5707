"""Turns a git tree of upstream into the pull request."""
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from .adapt import Adapted, Note, adapt
from .checkout import Checkout
from .contents import PATH as CONTENTS, merge_contents
from .errors import PatchsetError
from .imported import missing_names
from .project import Project
from .pull_request import EXPORTS, FAMILY_TEST, MODELS, REST, PullRequest, family_of
from .script import SCRIPTS, hand_over
from .tree import Tree


class Applied(NamedTuple):
    """
    Attributes:
        written: Paths of the files that are another now.
        settled: Number of files that were right already.
        notes: What a person should look at.
    """
    written: List[str]
    settled: int
    notes: List[Note]


class UpstreamDiffers(PatchsetError):
    """The tree is not the pinned upstream where overlays stand on it.

    Attributes:
        notes: Every method that differs.
    """

    def __init__(self, notes: List[Note]):
        super().__init__('', f'upstream differs in {len(notes)} places from what the overlays stand on: '
                             'nothing is written; --merge weaves what can be woven and leaves the rest')
        self.notes = notes


def apply(project: Project, folder: Path, only: Optional[str] = None, merge: bool = False) -> Applied:
    """Write the pull request, or one step of it, into a git tree. All of it or nothing.

    Args:
        folder: Root of the tree, at whatever commit.
        only: A step, the name of a family or `mim`.
        merge: Weave into files that differ from the pinned release, leave those that do not weave.
    """
    return Application(project, Checkout(folder), merge).run(only)


class Application:

    def __init__(self, project: Project, checkout: Checkout, merge: bool):
        self.tree: Tree = project.check()
        self.version = project.pin['version']
        self.request = PullRequest(project.root)
        self.checkout = checkout
        self.merge = merge
        self.notes: List[Note] = []

    def run(self, only: Optional[str]) -> Applied:
        step = self.request.step(only, self.is_done)
        files = self.weave([path for path in self.request.overlays if path in step and path != EXPORTS])
        if only in self.request.families and f'{MODELS}{only}.py' not in files:
            raise UpstreamDiffers(self.notes)
        files.update({path: self.new_file(path, data) for path, data in self.request.modules.items() if path in step})
        if self.leaves_rest(files, only):
            step &= self.request.of_families
            files = {path: data for path, data in files.items() if path in step}
            self.notes = [note for note in self.notes if note.kind == 'left' or note.path in step]
        files.update({path: self.new_file(path, data) for path, data in self.request.others.items() if path in step})
        files[EXPORTS] = self.exports(set(files))
        families = {path for path in files if path in self.request.overlays}
        files[FAMILY_TEST] = self.family_test(families)
        for script in sorted(step.intersection(SCRIPTS)):
            files[script] = self.settle(script, partial(hand_over, path=script))
        if CONTENTS in step:
            files[CONTENTS] = self.settle(CONTENTS, lambda theirs: merge_contents(self.request.contents, theirs))
        written = {path: data for path, data in files.items() if data != self.checkout.read(path)}
        self.checkout.write(written)
        return Applied(sorted(written), len(files) - len(written), self.notes)

    def leaves_rest(self, files: Dict[str, bytes], only: Optional[str]) -> bool:
        """Whether the step `mim` cannot come, since its modules import names that this upstream lacks."""
        new = {path: files[path] for path in self.request.modules if path in files and path.endswith('.py')}
        package = {**self.checkout.package(), **files, EXPORTS: self.exports(set(files))}
        missing = list(missing_names(new, package))
        if not missing:
            return False
        names = dict.fromkeys(f'{entry.package}.{name}' for entry in missing for name in entry.names)
        self.notes.append(Note(
            'left', f'--only {REST}', f'needs timm {self.version}: upstream lacks {", ".join(names)}; the '
                                      'scripts stay without --mim'))
        if not self.merge or only == REST or any(entry.path in self.request.of_families for entry in missing):
            raise UpstreamDiffers(self.notes)
        return True

    def is_done(self, family: str) -> bool:
        """Whether a family is woven in, or is left out because it cannot be."""
        return self.is_woven(family) or self.merge and self.adapt(f'{MODELS}{family}.py').woven is None

    def is_woven(self, family: str) -> bool:
        return b'EmbedStagesMixin' in (self.checkout.read(f'{MODELS}{family}.py') or b'')

    def weave(self, paths: List[str]) -> Dict[str, bytes]:
        adapted = {path: self.adapt(path) for path in paths}
        self.notes = [note for result in adapted.values() for note in result.notes]
        if self.notes and not self.merge:
            raise UpstreamDiffers(self.notes)
        woven = {path: result.woven for path, result in adapted.items() if result.woven is not None}
        for path in list(woven):
            lacking = [p for p in self.request.needed(path) if p in adapted and p not in woven]
            if lacking:
                self.notes.append(Note('left', path, f'stands on {lacking[0]}'))
                del woven[path]
        return woven

    def adapt(self, path: str) -> Adapted:
        """The woven file, or the one that lies there if it is what weaving makes of an earlier version."""
        current, overlay = self.checkout.read(path), self.request.overlays[path]
        if current == self.tree.changed[path]:
            return Adapted(overlay, current)
        result = adapt(self.tree.stock[path], current, overlay, path)
        if result.notes and current is not None:
            for earlier in self.checkout.earlier(path):
                if adapt(self.tree.stock[path], earlier, overlay, path).woven == current:
                    return Adapted(overlay, current)
        return result

    def settle(self, path: str, transform) -> bytes:
        current = self.checkout.read(path)
        if current is None:
            raise PatchsetError(path, 'is missing in the tree')
        try:
            return transform(current)
        except PatchsetError:
            for earlier in self.checkout.earlier(path):
                try:
                    if transform(earlier) == current:
                        return current
                except PatchsetError:
                    pass
            raise

    def new_file(self, path: str, data: bytes) -> bytes:
        if self.checkout.read(path) not in (None, data):
            raise PatchsetError(path, 'is in the way: the tree has another file there')
        return data

    def exports(self, coming: set) -> bytes:
        there = {path for path in self.request.modules if self.checkout.read(path) is not None}
        result = adapt(
            self.tree.stock[EXPORTS], self.checkout.read(EXPORTS), self.request.exports(there | coming), EXPORTS)
        if result.woven is None:
            raise UpstreamDiffers(result.notes)
        return result.woven

    def family_test(self, coming: set) -> bytes:
        """The families' test, which grows by a line with each family."""
        def present(family: str) -> bool:
            return f'{MODELS}{family}.py' in coming or self.is_woven(family)

        new, current = self.request.family_test(present), self.checkout.read(FAMILY_TEST)
        if current is not None and without_table(current) != without_table(new):
            return self.new_file(FAMILY_TEST, new)
        return new


def without_table(test: bytes) -> List[bytes]:
    return [line for line in test.splitlines() if family_of(line) is None]
