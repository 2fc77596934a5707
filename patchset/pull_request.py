"""What goes upstream, and in which steps: one family of models at a time, and `mim`, all the rest, last."""
import ast
import re
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Set

from .contents import PATH as CONTENTS, pages_of
from .errors import PatchsetError
from .overlay import HEADER
from .script import SCRIPTS
from .source import parse
from .tree import PACKAGE, read_overlays

VERSION = f'{PACKAGE}/version.py'  # the fork's own
EXPORTS = f'{PACKAGE}/models/__init__.py'
MODELS = f'{PACKAGE}/models/'
REST = 'mim'
FAMILY_TEST = 'tests/test_embed_stages.py'
FAMILY_TEST_SOURCE = 'patchset/upstream_tests/test_embed_stages.py'
TEST_FOLDERS = ('tests/models', 'tests/mim', 'tests/train')
# what upstream's tests do not have: this tool, the fork's own script, libraries (most tests ask for those and skip)
NOT_UPSTREAM = {'patchset', 'training', 'transformers', 'lightly'}
# of the tests of training those that are not about the fork's own scripts and recipes
OF_TRAINING = {
    'test_given_arguments.py', 'test_masked_image_modeling_task.py', 'test_old_torch.py', 'test_pretrain_baselines.py',
    'test_pretrain_data.py', 'test_pretrain_distributed.py', 'test_pretrain_progress.py', 'test_pretrain_resume.py',
}
OF_THE_FORK = {'test_models_page.py'}  # how its pages are made
# what the pages speak of
EXAMPLES = ('recipes/*.yaml', 'examples/maskfeat.py')


class PullRequest:
    """The files of the fork that go upstream.

    Attributes:
        overlays: Overlays by path.
        modules: New modules by path.
        others: Tests, documentation pages and their pictures, recipes and an example by path.
        contents: Entries for the pages, None without pages.
    """

    def __init__(self, root: Path):
        files = {path: data for path, data in read_overlays(root) if path != VERSION}
        self.root = root
        self.overlays = {path: data for path, data in files.items() if data.startswith(HEADER)}
        self.modules = {path: data for path, data in files.items() if path not in self.overlays}
        pages = sorted((root / CONTENTS).parent.rglob('*.mdx'))
        pictures = sorted((root / CONTENTS).parent.rglob('*.png'))
        examples = sorted(path for pattern in EXAMPLES for path in root.glob(pattern))
        documents = [*pages, *pictures, *examples]
        self.others = {**tests(root), **{path.relative_to(root).as_posix(): path.read_bytes() for path in documents}}
        self.contents = (root / CONTENTS).read_bytes() if (root / CONTENTS).is_file() else None
        listed = pages_of(self.contents or b'')
        for page in pages:
            if page.relative_to((root / CONTENTS).parent).with_suffix('').as_posix() not in listed:
                raise PatchsetError(CONTENTS, f'has no entry for {page.name}')

    @property
    def families(self) -> List[str]:
        """Overlays of model files, by name."""
        return [path[len(MODELS):-3] for path in self.overlays if path.startswith(MODELS) and path != EXPORTS]

    @property
    def of_families(self) -> Set[str]:
        """Paths of the files of all families, without the rest."""
        needed = (self.needed(f'{MODELS}{family}.py') for family in self.families)
        return {EXPORTS, FAMILY_TEST}.union(*needed)

    def step(self, only: Optional[str], present: Callable[[str], bool]) -> Set[str]:
        """Paths of the files of a step: a family, `mim`, or everything.

        Args:
            present: Whether a family is in the tree, from an earlier step.
        """
        everything = {*self.overlays, *self.modules, *self.others, FAMILY_TEST, *SCRIPTS}
        everything |= {CONTENTS} if self.contents is not None else set()
        if only is None:
            return everything
        if only in self.families:
            return {*self.needed(f'{MODELS}{only}.py'), EXPORTS, FAMILY_TEST}
        if only != REST:
            raise PatchsetError(f'--only {only}', f"takes {REST!r} or a family: {', '.join(self.families)}")
        missing = [family for family in self.families if not present(family)]
        if missing:
            raise PatchsetError(f'--only {REST}', f"comes last, these families come before it: {', '.join(missing)}")
        return everything - {f'{MODELS}{family}.py' for family in self.families}

    def needed(self, path: str) -> Set[str]:
        """A file and the files of the fork that it imports, directly or not."""
        found, waiting = set(), [path]
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += imports_of(path, self.text(path), {*self.overlays, *self.modules} - {EXPORTS})
        return found

    def text(self, path: str) -> bytes:
        return self.overlays.get(path) or self.modules[path]

    def exports(self, available: Set[str]) -> bytes:
        """The overlay of `timm/models/__init__.py`, with the imports of available modules only."""
        data = self.overlays[EXPORTS]
        lines = data.splitlines(keepends=True)
        for statement in reversed(parse(data, EXPORTS).body):
            wanted = imports_of(EXPORTS, lines_of(lines, statement), set(self.modules))
            if wanted and not available.issuperset(wanted):
                del lines[statement.lineno - 1:statement.end_lineno]
        return b''.join(lines)

    def family_test(self, present: Callable[[str], bool]) -> bytes:
        """The test of all families, with the lines of those that are there only."""
        data = (self.root / FAMILY_TEST_SOURCE).read_bytes()
        lines = data.splitlines(keepends=True)
        return b''.join(line for line in lines if family_of(line) is None or present(family_of(line)))


def family_of(line: bytes) -> Optional[str]:
    """The family that a line of the test's table is for."""
    found = re.match(rb"    '(\w+)': ", line)
    return found[1].decode() if found else None


def lines_of(lines: List[bytes], statement: ast.stmt) -> bytes:
    return b''.join(lines[statement.lineno - 1:statement.end_lineno])


def imports_of(path: str, data: bytes, files: Set[str]) -> List[str]:
    """Which of the files a module imports."""
    found = []
    for name in imported_names(path, data):
        module = name.replace('.', '/')
        found += [file for file in (f'{module}.py', f'{module}/__init__.py') if file in files]
    return found


def imported_names(path: str, data: bytes) -> Iterator[str]:
    """Modules, and names that may be modules, spelled in full."""
    for node in ast.walk(parse(data, path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.split('/')[:-node.level] if node.level else []
            base = '.'.join(package + ([node.module] if node.module else []))
            yield base
            yield from (f'{base}.{alias.name}' for alias in node.names)


def imported_tops(path: str, data: bytes) -> Set[str]:
    return {name.split('.')[0] for name in imported_names(path, data)}


def tests(root: Path) -> Dict[str, bytes]:
    """Tests that need nothing that upstream does not have, and the modules that they import."""
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in TEST_FOLDERS for path in sorted((root / folder).glob('*.py')) if goes_upstream(path)
    }
    barred = NOT_UPSTREAM | {path.stem for path in (root / 'tests/equivalence').glob('*.py')}
    while True:
        kept = {path: data for path, data in files.items() if not barred.intersection(imported_tops(path, data))}
        barred |= {Path(path).stem for path in files if path not in kept}
        used = {'conftest'}.union(*(imported_tops(path, data) for path, data in kept.items()))
        kept = {path: data for path, data in kept.items() if Path(path).stem in used or is_test(path)}
        if len(kept) == len(files):
            return kept
        files = kept


def goes_upstream(path: Path) -> bool:
    if is_test(path.name) and path.parent.name == 'train':
        return path.name in OF_TRAINING
    return path.name not in OF_THE_FORK


def is_test(path: str) -> bool:
    return path.split('/')[-1].startswith('test_')
