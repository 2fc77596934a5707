"""Moves the patch set to another release of upstream. Everything that is woven is proven, or a person has named it.

The proof is that of `tests/equivalence`: the operations of a model, and its numbers where operations cannot be traced.
"""
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from . import PatchsetError
from .findings import Finding, compare_releases
from .lock import dump_lock
from .project import HEADER, PACKAGE, Project, Tree, read_overlays, replace_files, weave_files, write_tree
from .steps import EXPORTS, MODELS, VERSION, imports_of, missing_names
from .upstream import read_package, release

# overlays that are left out of a release wait here, by the release that they were made for; each upgrade tries them
WAITING = 'without'

FOLDER = Path('tests/equivalence')


class Proved(NamedTuple):
    """
    Attributes:
        name: The model.
        problem: The first difference, None if there is none.
        reason: Why there is nothing to compare, None if there is: stock timm itself fails.
        place: Module and class, as `--keep` takes them.
    """
    name: str
    problem: Optional[str] = None
    reason: Optional[str] = None
    place: str = ''


class Upgrade(NamedTuple):
    """The patch set on another release, in memory.

    Attributes:
        pin: The release.
        stock: Upstream's files in it, by path.
        files: The overlays and the new files.
        findings: One per class, more for one that is left.
        waiting: Overlays that are left out, by path below `without/`.
        notes: Other things to look at.
    """
    pin: Dict[str, str]
    stock: Dict[str, bytes]
    files: Dict[str, bytes]
    findings: List[Finding]
    waiting: Dict[str, bytes]
    notes: List[str]

    @property
    def left(self) -> List[Finding]:
        return [finding for finding in self.findings if finding.kind == 'left']


def plan_upgrade(
        project: Project,
        version: str,
        keep: Sequence[str] = (),
        without: Sequence[str] = (),
) -> Upgrade:
    """Fetch a release and compare it, class by class, with the one that each overlay was made for. Writes nothing.

    Args:
        version: The release, older ones too.
        keep: `path:Class.name` of what upstream changed and the overlay is right about as it is.
        without: Families to leave out.
    """
    folder = project.build_folder / 'upstream'
    old = read_package(project.wheel())
    pin = release(project.pin['name'], version, folder)
    stock = read_package(folder / pin['wheel'])
    files = dict(read_overlays(project.root))
    bases = {path: old for path in files}
    made_for = {path: project.pin['version'] for path in files}
    for path, (base, data) in waiting(project.root).items():
        files[path], made_for[path] = data, base
        bases[path] = read_package(folder / release(project.pin['name'], base, folder)['wheel'])
    out = left_out(files, without)
    parked = {f'{WAITING}/{made_for[path]}/{path}': files.pop(path) for path in out}
    findings: List[Finding] = []
    package = dict(stock)
    for path, data in files.items():
        if path == VERSION:
            files[path] = data.replace(f"'{project.pin['version']}+".encode(), f"'{version}+".encode())
        elif data.startswith(HEADER):
            found, woven = compare_releases(bases[path][path], stock.get(path), data, path, tuple(keep))
            findings += found
            package[path] = woven if woven is not None else stock.get(path, b'')
        elif path in stock:
            findings.append(Finding('left', path, '', 'is a new file of the fork, upstream has a file of that name'))
        else:
            package[path] = data
    modules = {path: data for path, data in files.items() if not data.startswith(HEADER) and path.endswith('.py')}
    notes = [f'no overlay serves: {path}' for path in new_models(old, stock, files)]
    for missing in missing_names(modules, package):
        why = f'imports {missing}, which this release does not have'
        if missing.path in keep:
            notes.append(f'kept: {missing.path} {why}: with this release it cannot be imported')
        else:
            findings.append(Finding('left', missing.path, '', why))
    check_kept(keep, files)
    return Upgrade(pin, stock, files, findings, parked, notes)


def waiting(root: Path) -> Dict[str, Tuple[str, bytes]]:
    """Overlays that wait, by path, with the release that they were made for."""
    found = {}
    for file in sorted((root / WAITING).rglob('*.py')):
        version, path = file.relative_to(root / WAITING).as_posix().split('/', 1)
        found[path] = version, file.read_bytes()
    return found


def left_out(files: Dict[str, bytes], without: Sequence[str]) -> List[str]:
    """Overlays of the families, and of those that import them."""
    overlays = [path for path, data in files.items() if data.startswith(HEADER) and path != EXPORTS]
    families = {path[len(MODELS):-3] for path in overlays if path.startswith(MODELS)}
    for name in without:
        if name not in families:
            raise PatchsetError(f'--without {name}', f'takes a family: {", ".join(sorted(families))}')
    out = {f'{MODELS}{name}.py' for name in without}
    for _ in overlays:
        out |= {path for path in overlays if out.intersection(imports_of(path, files[path], set(files)))}
    return sorted(out)


def check_kept(keep: Sequence[str], files: Dict[str, bytes]) -> None:
    for name in keep:
        if name.split(':')[0] not in files:
            raise PatchsetError(f'--keep {name}', "takes a place that was left, as 'timm/models/eva.py:Eva.forward'")


def new_models(old: Dict[str, bytes], stock: Dict[str, bytes], files: Dict[str, bytes]) -> Iterator[str]:
    for path in sorted(set(stock) - set(old) - set(files)):
        if path.startswith(MODELS) and b'def forward_features' in stock[path]:
            yield path


def write_upgrade(project: Project, upgrade: Upgrade) -> None:
    """Write overlays, version and lock, all or nothing; what is left out goes to `without/`, or comes back."""
    tree = weave_files(upgrade.stock, upgrade.files)
    before = dict(read_overlays(project.root))
    files: Dict[Path, bytes] = {
        project.root / path: data for path, data in upgrade.files.items() if data != before.get(path)}
    files.update({project.root / path: data for path, data in upgrade.waiting.items()})
    files[project.lock_file] = dump_lock({'upstream': upgrade.pin, **tree.facts}).encode()
    replace_files(files, project.root)
    stale = [project.root / path for path in before if path not in upgrade.files]
    stale += [file for file in (project.root / WAITING).rglob('*.py')
              if file.relative_to(project.root).as_posix() not in upgrade.waiting]
    for file in stale:
        file.unlink()
    for folder in sorted((project.root / WAITING).rglob('*'), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if (project.root / WAITING).is_dir() and not any((project.root / WAITING).iterdir()):
        (project.root / WAITING).rmdir()


def prove_upgrade(project: Project, upgrade: Upgrade, all_models: bool = False) -> Iterator[Proved]:
    """Compare the woven release with the release itself, in `build/upgrade`."""
    folder = project.build_folder / 'upgrade' / upgrade.pin['version']
    tree: Tree = weave_files(upgrade.stock, upgrade.files)
    write_tree(tree.stock, folder / 'stock', PACKAGE)
    write_tree(tree.woven, folder / 'woven', PACKAGE)
    yield from prove(project.root, folder / 'stock', folder / 'woven', all_models)


def prove(
        root: Path,
        stock: Path,
        woven: Path,
        all_models: bool = False,
) -> Iterator[Proved]:
    """Compare the models that have the protocol in the woven tree, a small one of each class.

    Args:
        root: The clone of the fork.
        stock: Folder with stock timm.
        woven: Folder with the woven timm.
        all_models: Every model instead, minutes.
    """
    if not (root / FOLDER).is_dir():
        raise PatchsetError(str(root / FOLDER), 'is missing: the proof runs in a clone')
    sys.path.insert(0, str(root / FOLDER))
    try:
        from compare import differing, first_difference
        from registry import registered
        from stock import ForkedTimm, StockTimm
    finally:
        sys.path.remove(str(root / FOLDER))
    theirs, ours = StockTimm(stock), ForkedTimm(woven)
    try:
        for models in groups(registered(), all_models):
            yield from prove_first(models, theirs, ours, first_difference, differing)
    except RuntimeError as error:  # a process that runs models is gone
        raise PatchsetError('the proof', f'stopped, nothing is written: {error}; its output stands above') from None
    finally:
        theirs.close()
        ours.close()


def groups(entries: List[Any], all_models: bool) -> List[List[Any]]:
    """Models of which one has to be compared, in the order in which to try them: by class, the smallest first."""
    if all_models:
        return [[entry] for entry in entries]
    classes = {}
    for entry in sorted(entries, key=lambda entry: entry.parameters):
        classes.setdefault((entry.module, entry.class_name), []).append(entry)
    return list(classes.values())


def prove_first(
        models: List[Any],
        theirs: Any,
        ours: Any,
        first_difference: Callable,
        differing: Callable,
) -> Iterator[Proved]:
    """The first model that both trees register and that has the protocol."""
    for entry in models:
        if not ask(ours, 'is_served', entry.name):
            continue
        theirs.ask('operations', name=entry.name)
        ours.ask('operations', name=entry.name, composed=True)
        expected, found = theirs.read(), ours.read()
        place = f'timm/models/{entry.module}.py:{entry.class_name}'
        if 'error' in expected:
            yield prove_numbers(entry.name, theirs, ours, differing)._replace(place=place)
        elif 'error' in found:
            yield Proved(entry.name, found['error'], place=place)
        else:
            yield Proved(entry.name, first_difference(found['result'], expected['result']), place=place)
        return


def prove_numbers(name: str, theirs: Any, ours: Any, differing: Callable) -> Proved:
    """Features, output and gradients, bit for bit, of a model that cannot be traced on the meta device."""
    theirs.ask('values', name=name)
    ours.ask('values', name=name, composed=['eval'])
    expected, found = theirs.read(), ours.read()
    if 'error' in expected:
        return Proved(name, reason=expected['error'])
    if 'error' in found:
        return Proved(name, found['error'])
    differences = differing(found['result'], expected['result'])
    return Proved(name, f'differs in {differences[0]}' if differences else None)


def ask(process: Any, function: str, name: str) -> Any:
    process.ask(function, name=name)
    return process.answer()
