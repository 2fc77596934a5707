"""The whole package, woven in memory."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

from .errors import PatchsetError
from .lock import describe
from .overlay import HEADER
from .plan import make_plan
from .protocol import WORDS, check_free, imported_classes, served_classes
from .source import Source
from .upstream import read_package
from .weave import weave_plan

PACKAGE = 'timm'
RECIPES = 'timm/mim/recipes'


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
