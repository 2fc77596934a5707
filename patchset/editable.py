"""Installations of the fork. An editable one weaves again on import; `problem` says whether Python finds the fork."""
import importlib
import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Dict, Optional

from . import PatchsetError
from .project import ROOT, Project

HOOK = '_timm_patchset'

# Runs whenever Python starts, so that it does next to nothing until timm is imported.
FINDER = '''\
"""Weaves timm again on import when an overlay has changed. Written by the editable install of {root}"""
import sys


class Finder:

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'timm' and path is None:
            refresh()
        return None


def refresh():
    from importlib.util import module_from_spec, spec_from_file_location
    folder = {folder!r}
    # under a private name, so that a `patchset` that the program imports is its own
    spec = spec_from_file_location('{hook}_tool', folder + '/__init__.py', submodule_search_locations=[folder])
    try:
        tool = sys.modules.setdefault('{hook}_tool', module_from_spec(spec))
        spec.loader.exec_module(tool)
    except FileNotFoundError:
        return  # the clone is gone
    from importlib import import_module
    import_module('{hook}_tool.editable').refresh()


sys.meta_path.insert(0, Finder)
'''

ADVICE = f"'pip install -e {ROOT}' installs the fork, 'make' in {ROOT} does so in .venv"


def site_packages_files(project: Project) -> Dict[str, str]:
    """Writes the files that an editable install puts into site-packages; returns their names there."""
    folder = project.build_folder / 'editable'
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        f'{HOOK}.pth': f'import {HOOK}\n',
        f'{HOOK}.py': FINDER.format(root=project.root, folder=str(project.root / 'patchset'), hook=HOOK),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding='utf-8')
    return {str(folder / name): name for name in texts}


def refresh() -> None:
    """Weave if the tree is stale; an ImportError with the one line that says what is wrong if that fails."""
    project = Project()
    found = PathFinder.find_spec('timm')
    if found and found.origin and Path(found.origin) != project.build_folder / 'timm' / '__init__.py':
        return  # another timm comes first on the path
    try:
        differences = project.refresh()
    except PatchsetError as error:
        raise ImportError(f'patchset: {error}') from None
    except OSError as error:
        raise ImportError(f'patchset: cannot weave {project.build_folder}/timm: {error}') from None
    importlib.invalidate_caches()
    if differences:
        advice = "woven, but a build asks for 'python -m patchset lock' first"
        print(f"patchset: {differences[0].problem}; {advice}", file=sys.stderr)


def problem() -> Optional[str]:
    """One line that says what is wrong, None if the fork of this repository's version is what Python finds."""
    try:
        spec = importlib.util.find_spec('timm')
    except ImportError as error:
        return str(error)  # an editable install whose overlays do not weave
    if spec is None or spec.origin is None:
        return f'timm is not installed: {ADVICE}.'
    wanted = read_version(ROOT / 'timm' / 'version.py')
    found = read_version(Path(spec.origin).with_name('version.py'))
    if found != wanted:
        kind = 'another version of the fork' if '+mim' in found else 'stock timm'
        return f'{spec.origin} is {kind} ({found}), this repository is {wanted}: {ADVICE}.'
    return None


def read_version(file: Path) -> str:
    """The version in a `version.py`, read as text."""
    try:
        text = file.read_text(encoding='utf-8')
    except OSError:
        return 'unknown'
    found = re.search(r"^__version__ = '([^']*)'", text, re.MULTILINE)
    return found.group(1) if found else 'unknown'
