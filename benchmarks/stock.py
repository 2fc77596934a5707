"""Import stock timm and the fork into one process, each with its own modules."""
import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Dict

TREE = Path(__file__).resolve().parent.parent / 'build' / 'stock'  # `python -m patchset build` unpacks it


class StockModules:
    """Modules of stock timm. Within the context `active`, imports of timm return them."""

    def __init__(self):
        if not (TREE / 'timm').is_dir():
            raise SystemExit(f'{TREE} is missing: run python -m patchset build')
        self.modules: Dict[str, ModuleType] = {}
        with self.active():
            timm = importlib.import_module('timm')
            assert Path(timm.__file__).is_relative_to(TREE) and '+mim' not in timm.__version__, timm.__file__

    @contextmanager
    def active(self):
        forks = _take_modules()
        sys.path.insert(0, str(TREE))
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            sys.path.remove(str(TREE))
            self.modules = _take_modules()
            sys.modules.update(forks)


def _take_modules() -> Dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name == 'timm' or name.startswith('timm.')}
