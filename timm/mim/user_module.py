""" Modules of a User's, With Methods and Models of Their Own
"""
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ['import_user_module']


def import_user_module(name: str) -> ModuleType:
    """ Import a module by name, or a file that need not be on the path; a file once only, as modules are.

    What it registers by `register_mim` or timm's `register_model` is there afterwards.

    Args:
        name: Name of a module, or path of a file that ends in .py.

    Raises:
        ImportError: There is no such module or file, or it does not run.
    """
    try:
        return _import_file(Path(name).resolve()) if name.endswith('.py') else importlib.import_module(name)
    except Exception as error:  # whatever a user's code raises
        raise ImportError(f'{type(error).__name__}: {error}') from error


def _import_file(path: Path) -> ModuleType:
    # a name that no other module has, the file may be called timm.py
    module_name = f'{path.stem} ({path})'
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses, for one, look up the module of a class while it is made
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
