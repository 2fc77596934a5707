"""Do the names that new modules import from upstream exist in another version of it?"""
import ast
from typing import Dict, Iterator, List, NamedTuple, Optional, Set

from .names import bindings
from .source import parse
from .tree import PACKAGE


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
