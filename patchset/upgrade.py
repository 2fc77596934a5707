"""Moves the patch set to another release of upstream."""
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence

from .adapt import Adapted, Note, adapt
from .errors import PatchsetError
from .files import replace_files, write_tree
from .imported import missing_names
from .lock import dump_lock
from .proof import Proved, prove
from .project import Project
from .pull_request import MODELS, VERSION
from .tree import PACKAGE, Tree, read_overlays, weave_files
from .upstream import read_package, release


class Upgrade(NamedTuple):
    """The patch set on another release, in memory.

    Attributes:
        pin: The release.
        stock: Upstream's files in it, by path.
        files: The overlays, merged, and the new files.
        notes: What upstream changed, one per method.
    """
    pin: Dict[str, str]
    stock: Dict[str, bytes]
    files: Dict[str, bytes]
    notes: List[Note]

    @property
    def left(self) -> List[Note]:
        return [note for note in self.notes if note.kind == 'left']


def plan_upgrade(project: Project, version: str, keep: Sequence[str] = ()) -> Upgrade:
    """Fetch a release and merge every overlay into it. Nothing is written.

    Args:
        version: The release, older ones too.
        keep: `path:Class.method` of what upstream changed and the overlay is right about as it is.
    """
    old = read_package(project.wheel())
    pin = release(project.pin['name'], version, project.build_folder / 'upstream')
    stock = read_package(project.build_folder / 'upstream' / pin['wheel'])
    files, notes, package = {}, [], dict(stock)
    for path, data in read_overlays(project.root):
        if path == VERSION:
            files[path] = data.replace(f"'{project.pin['version']}+".encode(), f"'{version}+".encode())
        elif path in old:
            result: Adapted = adapt(old[path], stock.get(path), data, path, tuple(keep))
            files[path] = result.overlay
            notes += result.notes
            if result.woven is not None:
                package[path] = result.woven
        else:
            files[path] = package[path] = data
            if path in stock:
                notes.append(Note('left', path, 'upstream has a file of that name'))
    check_kept(keep, files)
    modules = {path: data for path, data in files.items() if path not in old and path.endswith('.py')}
    notes += [
        Note('missing', missing.path, f'imports {missing}, which upstream does not have')
        for missing in missing_names(modules, package)]
    return Upgrade(pin, stock, files, notes + list(new_models(old, stock, files)))


def check_kept(keep: Sequence[str], files: Dict[str, bytes]) -> None:
    for name in keep:
        if name.split(':')[0] not in files:
            raise PatchsetError(f'--keep {name}', "takes an overlay and a method, 'timm/models/eva.py:Eva.forward'")


def new_models(old: Dict[str, bytes], stock: Dict[str, bytes], files: Dict[str, bytes]) -> Iterator[Note]:
    for path in sorted(set(stock) - set(old) - set(files)):
        if path.startswith(MODELS) and b'def forward_features' in stock[path]:
            yield Note('new', path, 'models that no overlay serves')


def write_upgrade(project: Project, upgrade: Upgrade) -> None:
    """Write the merged overlays and the lock, all or nothing."""
    tree = weave_files(upgrade.stock, upgrade.files)
    before = dict(read_overlays(project.root))
    files: Dict[Path, bytes] = {
        project.root / path: data for path, data in upgrade.files.items() if data != before[path]}
    files[project.lock_file] = dump_lock({'upstream': upgrade.pin, **tree.facts}).encode()
    replace_files(files, project.root)


def prove_upgrade(project: Project, upgrade: Upgrade, all_models: bool = False) -> Iterator[Proved]:
    """Compare the woven release with the release itself, in `build/upgrade`."""
    folder = project.build_folder / 'upgrade' / upgrade.pin['version']
    tree: Tree = weave_files(upgrade.stock, upgrade.files)
    write_tree(tree.stock, folder / 'stock', PACKAGE)
    write_tree(tree.woven, folder / 'woven', PACKAGE)
    yield from prove(project.root, folder / 'stock', folder / 'woven', all_models)
