"""The repository: its files and upstream's are woven in memory, compared with the lock, and then written.

A tree is written so that a reader never sees half a file, and so that a failure leaves everything as it was.
"""
import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set

from . import PatchsetError
from .lock import FILE, PIN, Difference, compare, describe, dump_lock, read_lock
from .overlay import HEADER
from .plan import make_plan
from .protocol import WORDS, check_free, imported_classes, served_classes
from .source import Source
from .upstream import is_kept, obtain, read_package
from .weave import weave_plan

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = 'timm'
RECIPES = 'timm/mim/recipes'

NOTICE = (
    '# NOTICE: modified from {name} {version} by its masked image modeling fork.\n'
    "# Generated: edit the overlay {path} in the fork's repository, not this file.\n"
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


@dataclass(frozen=True)
class Tree:
    """
    Attributes:
        stock: Upstream's files by path.
        changed: Woven and new files by path.
        facts: The lock's 'overlays' and 'new_files' sections as they should be.
    """
    stock: Dict[str, bytes]
    changed: Dict[str, bytes]
    facts: Dict[str, Any]

    @property
    def woven(self) -> Dict[str, bytes]:
        return {**self.stock, **self.changed}


class Project:
    """A clone (or an unpacked sdist) of the fork."""

    def __init__(self, root: Path = ROOT):
        self.root = Path(root)
        self.build_folder = self.root / 'build'
        self.lock_file = self.root / FILE
        self.state_file = self.build_folder / 'woven.json'

    @property
    def pin(self) -> Dict[str, str]:
        return read_lock(self.lock_file)['upstream']

    def wheel(self, download: bool = True) -> Path:
        return obtain(self.pin, self.build_folder / 'upstream', download)

    def weave(self, download: bool = True) -> Tree:
        return weave_tree(self.root, self.wheel(download))

    def differences(self, tree: Tree) -> List[Difference]:
        return compare(read_lock(self.lock_file), tree.facts)

    def require_locked(self, tree: Tree) -> Tree:
        differences = self.differences(tree)
        if differences:
            more = f' (and {len(differences) - 1} more)' if len(differences) > 1 else ''
            raise PatchsetError('', f"{differences[0].problem}{more}; if that is meant, run 'python -m patchset lock'")
        return tree

    def check(self) -> Tree:
        """As `build`, but nothing is written; a wheel that has to be fetched is not kept."""
        with tempfile.TemporaryDirectory() as folder:
            kept = self.build_folder / 'upstream'
            wheel = obtain(self.pin, kept if is_kept(self.pin, kept) else Path(folder))
            return self.require_locked(weave_tree(self.root, wheel))

    def build(self, stock: bool = False) -> Tree:
        """Weave, check, and write `build/timm`.

        Args:
            stock: Whether to unpack upstream, as it is, to `build/stock/timm` too.
        """
        with exclusive(self.build_folder / '.lock'):
            state = self.fingerprint()
            tree = self.require_locked(self.weave())
            self.write(tree, state)
            if stock:
                write_tree(tree.stock, self.build_folder / 'stock', PACKAGE)
        return tree

    def refresh(self) -> List[Difference]:
        """Weave again if anything changed since the last time. Returns how the lock differs, which is no obstacle here:
        the wheel is the pinned one, so that only the overlays can have moved on.
        """
        if self.is_fresh():
            return []
        with exclusive(self.build_folder / '.lock'):
            if self.is_fresh():
                return []
            # taken before the files are read: what changes from here on is seen the next time
            state = self.fingerprint()
            tree = self.weave(download=False)
            self.write(tree, state)
        return self.differences(tree)

    def write(self, tree: Tree, state: Any) -> None:
        self.state_file.unlink(missing_ok=True)
        write_tree(self.shipped(tree), self.build_folder, PACKAGE)
        replace_text(self.state_file, json.dumps(state))

    def shipped(self, tree: Tree) -> Dict[str, bytes]:
        """The package as it is installed: modified files carry a notice."""
        modified = [path for path in tree.changed if path in tree.stock]
        return {**tree.woven, **{path: add_notice(tree.changed[path], path, self.pin) for path in modified}}

    def is_fresh(self) -> bool:
        try:
            known = json.loads(self.state_file.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return False
        return known == self.fingerprint() and (self.build_folder / PACKAGE / '__init__.py').is_file()

    def fingerprint(self) -> List[List[Any]]:
        """Changes whenever a file that the woven tree is made of does."""
        tool = sorted((self.root / 'patchset').glob('*.py'))
        files = [*package_files(self.root), *recipe_files(self.root), self.lock_file, *tool]
        stats = [(file.relative_to(self.root).as_posix(), file.stat()) for file in files if file.exists()]
        return [[path, stat.st_mtime_ns, stat.st_size] for path, stat in stats]

    def update_lock(self) -> List[Difference]:
        """Rewrite the lock; returns what changed."""
        tree = self.weave()
        differences = self.differences(tree)
        text = dump_lock({'upstream': {key: self.pin[key] for key in PIN}, **tree.facts})
        if text != self.lock_file.read_text(encoding='utf-8'):
            replace_text(self.lock_file, text)
        return differences


def replace_text(file: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new one."""
    temporary = file.with_name(f'.{file.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, file)


def weave_tree(root: Path, wheel: Path) -> Tree:
    return weave_files(read_package(wheel), dict(read_overlays(root)))


def weave_files(stock: Dict[str, bytes], files: Dict[str, bytes]) -> Tree:
    """Args:
        stock: Upstream's files by path.
        files: The fork's overlays and new files by path.
    """
    changed, overlays, new_files, served = {}, {}, [], {}
    for path, data in files.items():
        if path not in stock:
            if data.startswith(HEADER):
                raise PatchsetError(path, 'is an overlay, but upstream has no such file')
            changed[path] = data
            new_files.append(path)
        elif not path.endswith('.py'):
            raise PatchsetError(path, 'exists upstream, and only Python files can be overlaid')
        else:
            plan = make_plan(stock[path], data, path)
            changed[path] = weave_plan(plan, path)
            overlays[path] = describe(plan)
            served[path] = set(served_classes(plan.overlay.source.tree))
    check_subclasses(stock, served)
    return Tree(stock, changed, {'new_files': new_files, 'overlays': overlays})


def check_subclasses(stock: Dict[str, bytes], served: Dict[str, Set[str]]) -> None:
    """Classes that inherit the protocol from another module must not define its names either."""
    names = '|'.join(sorted({name for classes in served.values() for name in classes}))
    mentions = re.compile(rf'\b(?:{names})\b'.encode())
    for path, data in stock.items() if names else ():
        if path.endswith('.py') and WORDS.search(data) and mentions.search(data):
            source = Source(data, f'upstream {path}')
            check_free(source, imported_classes(source.tree, path, served), path)


def read_overlays(root: Path) -> Iterator[tuple]:
    for file in package_files(root):
        yield file.relative_to(root).as_posix(), file.read_bytes()
    for file in recipe_files(root):
        yield f'{RECIPES}/{file.name}', file.read_bytes()


def recipe_files(root: Path) -> List[Path]:
    """Recipes of the repository, which the package carries too, for those who install it without a clone."""
    return sorted((root / 'recipes').glob('*.yaml'))


def package_files(root: Path) -> Iterator[Path]:
    """Files of the fork's package in a fixed order, bytecode and hidden files aside."""
    for file in sorted((root / PACKAGE).rglob('*')):
        parts = file.relative_to(root).parts
        if file.is_file() and not any(part == '__pycache__' or part.startswith('.') for part in parts):
            yield file


def add_notice(data: bytes, path: str, pin: Mapping[str, str]) -> bytes:
    """Comments at the head of a file, after a `#!` line."""
    source = Source(data, path)
    text = NOTICE.format(path=path, **pin).encode().replace(b'\n', source.newline)
    head = len(source.lines[0]) if data.startswith(b'#!') else 0
    return data[:head] + text + data[head:]


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the operating system frees the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            lock_windows(file)
        yield


def lock_windows(file) -> None:
    while True:
        with contextlib.suppress(OSError):
            file.seek(0)
            return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        time.sleep(0.1)


def write_tree(files: Dict[str, bytes], folder: Path, package: str) -> None:
    """Make `folder/package` hold exactly these files. Files that are right already are not touched.

    Args:
        files: Contents by path below the folder; all paths lie in the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as staging:
        staged = []
        for path, data in files.items():
            target = folder / path
            if not (target.is_file() and target.read_bytes() == data):
                staged.append((stage(Path(staging, str(len(staged))), data, target), target))
        for source, target in staged:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    remove_others(folder / package, {folder / path for path in files})


def stage(source: Path, data: bytes, target: Path) -> Path:
    """Write a file that is to replace another, with another second of modification than that has.

    Bytecode is cached by the second: two versions of equal length within one would be taken for the same.
    """
    source.write_bytes(data)
    with contextlib.suppress(FileNotFoundError):
        changed = max(int(time.time()), int(target.stat().st_mtime) + 1)
        os.utime(source, (changed, changed))
    return source


def remove_others(folder: Path, keep: set) -> None:
    for path in sorted(folder.rglob('*'), reverse=True):
        if path.is_dir() and path.name == '__pycache__':
            if not any(kept.parent == path.parent for kept in keep):
                shutil.rmtree(path)
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path not in keep and path.parent.name != '__pycache__':
            path.unlink()


def replace_files(files: Dict[Path, bytes], folder: Path) -> None:
    """Write all files or none, each with the permissions that it had.

    Args:
        files: Contents by path, in the folder.
        folder: On the files' device, for what is written before it takes its place.
    """
    before = {target: target.read_bytes() if target.exists() else None for target in files}
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as staging:
        staged = []
        for target, data in files.items():
            source = stage(Path(staging, str(len(staged))), data, target)
            if before[target] is not None:
                shutil.copymode(target, source)
            staged.append((source, target))
        done = []
        try:
            for source, target in staged:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
                done.append(target)
        except BaseException:
            restore({target: before[target] for target in done})
            raise


def restore(files: Dict[Path, Optional[bytes]]) -> None:
    for target, data in files.items():
        if data is None:
            target.unlink()
        else:
            target.write_bytes(data)
