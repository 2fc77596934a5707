"""The proofs of `tests/equivalence` on any two trees: operations, and numbers where operations cannot be traced."""
import sys
from pathlib import Path
from typing import Any, Callable, Collection, Iterator, List, NamedTuple, Optional

from .errors import PatchsetError

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


def prove(
        root: Path,
        stock: Path,
        woven: Path,
        all_models: bool = False,
        modules: Optional[Collection[str]] = None,
) -> Iterator[Proved]:
    """Compare the models that have the protocol in the woven tree, a small one of each class.

    Args:
        root: The clone of the fork.
        stock: Folder with stock timm.
        woven: Folder with the woven timm.
        all_models: Every model instead, minutes.
        modules: The files of timm/models to take models from, by name; all if None.
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
        entries = [entry for entry in registered() if modules is None or entry.module in modules]
        for models in groups(entries, all_models):
            yield from prove_first(models, theirs, ours, first_difference, differing)
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
