"""`timm.mim.pretrain.flags`, without `import timm`: that takes seconds, and --help needs nothing of it."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = 'pretraining_flags'  # not its own name, under which it is imported once more where timm is


def _load() -> ModuleType:
    """Import the package from where it is installed, by its path.

    Raises:
        SystemExit: The timm that is installed is not this fork.
    """
    places = importlib.util.find_spec('timm').submodule_search_locations
    files = [Path(place, 'mim', 'pretrain', 'flags', '__init__.py') for place in places]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        raise SystemExit('error: the installed timm has no timm.mim: pip install --editable . in this clone')
    spec = importlib.util.spec_from_file_location(NAME, file, submodule_search_locations=[str(file.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


flags = sys.modules.get(NAME) or _load()
