"""The repository: where things lie, and what the commands do."""
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from .differences import Difference, compare
from .errors import PatchsetError
from .files import exclusive, write_tree
from .lock import FILE, PIN, dump_lock, read_lock
from .notice import add_notice
from .tree import PACKAGE, Tree, package_files, recipe_files, weave_tree
from .upstream import is_kept, obtain

ROOT = Path(__file__).resolve().parents[1]


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
