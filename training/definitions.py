"""Import `timm.mim.pretrain.flags` without `import timm`, which takes seconds and which `--help` does not need.

The package is loaded from its file under its own name. A later `import timm` reuses it, so that a process has a single
`UserError` class.
"""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = 'timm.mim.pretrain.flags'


def _load() -> ModuleType:
    """Import the package by its path in the installed timm.

    Raises:
        SystemExit: The installed timm is not this fork.
    """
    timm = importlib.util.find_spec('timm')
    folders = timm.submodule_search_locations if timm else []
    files = [Path(folder, 'mim', 'pretrain', 'flags', '__init__.py') for folder in folders]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        raise SystemExit('error: the installed timm has no timm.mim: pip install --editable . in this clone')
    spec = importlib.util.spec_from_file_location(NAME, file, submodule_search_locations=[str(file.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


flags = sys.modules.get(NAME) or _load()
