"""Is the `timm` that would be imported this fork? Answered without importing it, which takes torch and seconds."""
import importlib.util
import re
from pathlib import Path
from typing import Optional

from .project import ROOT

ADVICE = f"'pip install -e {ROOT}' installs the fork, 'make' in {ROOT} does so in .venv"


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
