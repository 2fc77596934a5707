"""What goes upstream, in steps that a person can review: the files of each step, and their order.

The order follows from what the files import, so that each step imports only what is there.
"""
import ast
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

from . import PatchsetError
from .clone import CONTENTS, SCRIPTS, pages_of
from .names import bindings
from .overlay import HEADER
from .project import PACKAGE, RECIPES, read_overlays
from .source import parse

VERSION = f'{PACKAGE}/version.py'  # the fork's own
MODELS = f'{PACKAGE}/models/'
EXPORTS = f'{PACKAGE}/models/__init__.py'
MIM = f'{PACKAGE}/mim/'
METHODS = f'{MIM}__init__.py'
FACTORY = f'{MIM}factory.py'
FIRST = 'vision_transformer'
FAMILY_TEST = 'tests/test_embed_stages.py'
FAMILY_TEST_SOURCE = 'patchset/texts/test_embed_stages.py'
GROWING = (EXPORTS, METHODS)  # these get a few lines with some of the steps
LONGEST = 1400  # lines of new files in a step
TEST_FOLDERS = ('tests/models', 'tests/mim', 'tests/train')

# what upstream's tests do not have: this tool, the fork's own script, libraries (most tests ask for those and skip)
NOT_UPSTREAM = {'patchset', 'training', 'transformers', 'lightly'}

# of the tests of training those that are not about the fork's own scripts and recipes
OF_TRAINING = {
    'test_given_arguments.py', 'test_masked_image_modeling_task.py', 'test_pretrain_baselines.py',
    'test_pretrain_data.py', 'test_pretrain_distributed.py', 'test_pretrain_progress.py', 'test_pretrain_resume.py',
}
OF_THE_FORK = {'test_models_page.py'}  # how its pages are made

# what the pages speak of
EXAMPLES = ('examples/maskfeat.py',)


class Step(NamedTuple):
    """
    Attributes:
        name: A family, an overlay of another file, or a group with a number: 'mim-2'.
        kind: 'family', 'fix' (stands alone) or a group: 'mim', 'task', 'pretrain', 'convert', 'scripts',
            'documentation'.
        paths: The files that come with it; `GROWING` files come along by themselves.
    """
    name: str
    kind: str
    paths: List[str]


class Sources:
    """The files of the fork that go upstream.

    Attributes:
        overlays: Overlays by path.
        modules: New modules, and the recipes that the package carries, by path.
        tests: Tests and the modules that they import, by path.
        documents: Documentation pages and their pictures, and an example, by path.
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
        self.tests = tests(root)
        self.documents = {
            path.relative_to(root).as_posix(): path.read_bytes() for path in [*examples, *pages, *pictures]}
        self.contents = (root / CONTENTS).read_bytes() if (root / CONTENTS).is_file() else None
        listed = pages_of(self.contents or b'')
        for page in pages:
            if page.relative_to((root / CONTENTS).parent).with_suffix('').as_posix() not in listed:
                raise PatchsetError(CONTENTS, f'has no entry for {page.name}')
        if (root / FAMILY_TEST_SOURCE).is_file():
            self.tests[FAMILY_TEST] = (root / FAMILY_TEST_SOURCE).read_bytes()
        exports = {EXPORTS: self.overlays.get(EXPORTS, b''), METHODS: self.modules.get(METHODS, b'')}
        self.homes = {name: home for path, data in exports.items() for name, home in homes(path, data).items()}

    def text(self, path: str) -> bytes:
        return next(files[path] for files in (self.overlays, self.modules, self.tests, self.documents) if path in files)

    @property
    def families(self) -> List[str]:
        """Overlays of model files by name, ViT first."""
        names = [path[len(MODELS):-3] for path in self.overlays if path.startswith(MODELS) and path != EXPORTS]
        return sorted(names, key=lambda name: (name != FIRST, name))

    @lru_cache(maxsize=None)
    def imports(self, path: str) -> List[str]:
        """The files of the fork that a file imports; a name that a package exports counts as the module's it is of."""
        if path in SCRIPTS:
            return []
        known = {*self.overlays, *self.modules, *self.tests}
        found = []
        names = list(imported_names(path, self.text(path)))
        if 'timm.mim' in names and not self.homes.keys() & set(names):  # all of it: 'import timm.mim'
            found += [home for name, home in self.homes.items() if name.startswith('timm.mim.')]
        for name in names:
            if name in self.homes:
                found.append(self.homes[name])
                continue
            module = name.replace('.', '/')
            beside = f'{path.rsplit("/", 1)[0]}/{module}.py' if path in self.tests else ''
            found += [file for file in (f'{module}.py', f'{module}/__init__.py', beside) if file in known]
        if path in self.tests:
            found += self.needs_of_test(path, found)
        return [file for file in dict.fromkeys(found) if file not in (path, EXPORTS, METHODS)]

    def needs_of_test(self, path: str, imported: Sequence[str]) -> Iterator[str]:
        """What a test needs without importing it: the fixtures beside it, scripts that it names, registered methods."""
        conftest = f'{path.rsplit("/", 1)[0]}/conftest.py'
        yield from [conftest] * (conftest in self.tests)
        yield from (file for file in (*SCRIPTS, *EXAMPLES) if f"'{Path(file).name}'".encode() in self.tests[path])
        if FACTORY in imported:
            yield from (module for module, data in self.modules.items() if b'\n@register_mim(' in data)

    def needed(self, path: str) -> List[str]:
        """A file after the files of the fork that it imports, directly or not."""
        return in_order(self, [path], set())

    def exports(self, path: str, available: Set[str]) -> bytes:
        """The `__init__.py` of a package, with the imports of available modules only."""
        data = self.text(path)
        lines = data.splitlines(keepends=True)
        for statement in reversed(parse(data, path).body):
            home = f'{path.rsplit("/", 1)[0]}/{getattr(statement, "module", "")}.py'
            if home in self.modules and home not in available:
                del lines[statement.lineno - 1:statement.end_lineno]
        return b''.join(lines)


def steps(sources: Sources) -> List[Step]:
    """All steps: the families, what mends files of upstream, and the methods, which stand on all of it."""
    done: Set[str] = set()
    found = []
    for family in sources.families:
        for path in in_order(sources, [f'{MODELS}{family}.py'], done):
            name = path[len(MODELS):-3]
            if path in sources.overlays:  # a new module comes with the first family that imports it
                new = [module for module in in_order(sources, [path], set()) if module in sources.modules]
                taken = {file for step in found for file in step.paths}
                test = [FAMILY_TEST] if not found and FAMILY_TEST in sources.tests else []  # it comes with the first
                found.append(Step(name, 'family', [path] + [module for module in new if module not in taken] + test))
    others = [path for path in sources.overlays if path != EXPORTS and not path.startswith(MODELS)]
    alone = [path for path in others if not sources.needed(path)[:-1]]
    found += [Step(path.rsplit('/', 1)[1][:-3], 'fix', [path]) for path in alone]
    done.update(*(step.paths for step in found))
    rest = [path for path in [*sources.modules, *others] if path not in done and path != METHODS]
    for kind in ('mim', 'task', 'pretrain', 'convert'):
        found += pack(sources, kind, [path for path in rest if kind_of(path) == kind], done)
    found += pack(sources, 'scripts', list(SCRIPTS), done)
    found += pack(sources, 'documentation', list(sources.documents), done)
    if sources.contents is not None:
        found[-1].paths.append(CONTENTS)
    return found


def kind_of(path: str) -> str:
    if path.startswith(f'{PACKAGE}/task/'):
        return 'task'
    if path.startswith(f'{RECIPES}/'):
        return 'pretrain'
    return next((kind for kind in ('pretrain', 'convert') if path.startswith(f'{MIM}{kind}/')), 'mim')


def in_order(sources: Sources, paths: Sequence[str], done: Set[str]) -> List[str]:
    """Files after those that they import, which are taken along; `done` grows by them."""
    found: List[str] = []

    def visit(path: str) -> None:
        if path not in done:
            done.add(path)
            for needed in sources.imports(path):
                visit(needed)
            found.append(path)

    for path in paths:
        visit(path)
    return found


def pack(sources: Sources, kind: str, paths: List[str], done: Set[str]) -> List[Step]:
    """Steps of a group: its files in order, each test as soon as all that it needs is there."""
    sequence: List[str] = []
    for path in paths:
        code = path in sources.modules or path in sources.overlays
        order = in_order(sources, [path], set(done)) if code and path.endswith('.py') else [path]
        for file in order:
            done.add(file)
            ready = ready_tests(sources, done)
            sequence += [file] + ready
            done.update(ready)
    found: List[Step] = []
    room = 0
    for file in sequence:
        lines = 0 if file in SCRIPTS or file.endswith('.png') else sources.text(file).count(b'\n')
        if not found or lines > room:
            found.append(Step(f'{kind}-{len(found) + 1}', kind, []))
            room = LONGEST
        found[-1].paths.append(file)
        room -= lines
    return found if len(found) != 1 else [found[0]._replace(name=kind)]


def ready_tests(sources: Sources, there: Set[str]) -> List[str]:
    found: List[str] = []
    for test in sources.tests:
        if is_test(test) and test not in there:
            needed = [path for path in sources.needed(test) if path not in there and path not in found]
            if all(path in sources.tests for path in needed):
                found += needed
    return found


def homes(path: str, data: bytes) -> Dict[str, str]:
    """The module of each name that a package exports: 'timm.mim.MAE' is of 'timm/mim/mae.py'."""
    package = path.rsplit('/', 1)[0]
    return {
        f'{package.replace("/", ".")}.{alias.asname or alias.name}': f'{package}/{node.module}.py'
        for node in parse(data, path).body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names}


def imported_names(path: str, data: bytes) -> Iterator[str]:
    """Modules, and names that may be modules, spelled in full."""
    for node in ast.walk(parse(data, path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(path, node).replace('/', '.')
            if node.module is not None:  # `from . import name` needs that name alone
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


def imports_of(path: str, data: bytes, files: Set[str]) -> List[str]:
    """Which of the files a module imports."""
    names = [name.replace('.', '/') for name in imported_names(path, data)]
    return [file for name in names for file in (f'{name}.py', f'{name}/__init__.py') if file in files]


class Missing(NamedTuple):
    """Names that a module imports and upstream lacks.

    Attributes:
        path: The module that imports them.
        names: The names.
        package: Where it looks for them.
    """
    path: str
    names: List[str]
    package: str

    def __str__(self) -> str:
        return f'{", ".join(self.names)} from {self.package}'


def missing_names(modules: Dict[str, bytes], package: Dict[str, bytes]) -> Iterator[Missing]:
    """What modules import and would not find. What they import under `except ImportError` they can do without.

    Args:
        modules: The modules to look at, by path.
        package: All Python files of the package, those modules among them.
    """
    for path, data in modules.items():
        tree = parse(data, path)
        optional = {node for body in guarded(tree) for node in body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in optional:
                base = base_of(path, node)
                public = [alias.name for alias in node.names if alias.name[0] not in '*_']
                names = [name for name in public if not provides(base, name, package, set())]
                if base.split('/')[0] == PACKAGE and names:
                    yield Missing(path, names, base.replace('/', '.'))


def guarded(tree: ast.Module) -> Iterator[List[ast.stmt]]:
    """The statements that are tried, and of which an ImportError is caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            caught = {getattr(handler.type, 'id', None) for handler in node.handlers}
            if 'ImportError' in caught:
                yield node.body


def base_of(path: str, node: ast.ImportFrom) -> str:
    """The module that names are imported from, as a path without suffix."""
    package: List[str] = path.split('/')[:-node.level] if node.level else []
    return '/'.join(package + (node.module.split('.') if node.module else []))


def provides(base: str, name: str, package: Dict[str, bytes], seen: Set[str]) -> bool:
    """Whether `from base import name` finds something: a name, a module, or what an `import *` brings."""
    if file_of(f'{base}/{name}', package):
        return True
    path = file_of(base, package)
    if path is None or path in seen:
        return False
    seen.add(path)
    body = parse(package[path], path).body
    stars = [node for node in body if isinstance(node, ast.ImportFrom) and node.names[0].name == '*']
    return name in bindings(body) or any(provides(base_of(path, star), name, package, seen) for star in stars)


def file_of(base: str, package: Dict[str, bytes]) -> Optional[str]:
    return next((path for path in (f'{base}.py', f'{base}/__init__.py') if path in package), None)
