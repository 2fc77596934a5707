"""Import `timm.mim.pretrain.flags` without `import timm`, which takes seconds and which `--help` does not need.

The package is loaded from its file under its own name. A later `import timm` finds it there, so that there is one
`UserError` in a process.
"""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = 'timm.mim.pretrain.flags'


def _load() -> ModuleType:
    """Import the package from where it is installed, by its path.

    Raises:
        SystemExit: The timm that is installed is not this fork.
    """
    timm = importlib.util.find_spec('timm')
    places = timm.submodule_search_locations if timm else []
    files = [Path(process, 'mim', 'pretrain', 'flags', '__init__.py') for process in places]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        raise SystemExit('error: the installed timm has no timm.mim: pip install --editable . in this clone')
    spec = importlib.util.spec_from_file_location(NAME, file, submodule_search_locations=[str(file.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


flags = sys.modules.get(NAME) or _load()
