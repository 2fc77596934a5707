"""Upstream's published wheel: obtained, checked, read."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, Mapping, Optional

from . import PatchsetError

WHEEL_VARIABLE = 'TIMM_UPSTREAM_WHEEL'


def obtain(pin: Mapping[str, str], folder: Path, download: bool = True) -> Path:
    """The pinned wheel's path in a folder, where it is put if need be: from TIMM_UPSTREAM_WHEEL, else by pip.

    Args:
        pin: The lock's 'upstream' section.
        folder: Where wheels are kept.
    """
    given = os.environ.get(WHEEL_VARIABLE)
    if given and not Path(given).is_file():
        raise PatchsetError(f'{WHEEL_VARIABLE}={given}', 'there is no such file')
    if given:
        check(Path(given), pin)
    kept = folder / pin['wheel']
    if not is_kept(pin, folder):
        if not given and not download:
            raise PatchsetError(str(kept), "upstream's wheel is missing or damaged, run 'python -m patchset build'")
        fetch(pin, kept, given)
    return kept


def is_kept(pin: Mapping[str, str], folder: Path) -> bool:
    kept = folder / pin['wheel']
    return kept.is_file() and sha256(kept) == pin['sha256']


def check(wheel: Path, pin: Mapping[str, str]) -> Path:
    found = sha256(wheel)
    if found != pin['sha256']:
        raise PatchsetError(
            str(wheel), f"is not upstream's {pin['wheel']}: sha256 is {found}, the lock says {pin['sha256']}")
    return wheel


def fetch(pin: Mapping[str, str], target: Path, given: Optional[str]) -> None:
    """Copy or download the wheel; the target appears only once checked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        found = Path(folder, pin['wheel'])
        if given:
            shutil.copyfile(given, found)
        else:
            download_into(folder, pin)
        os.replace(check(found, pin), target)


def release(name: str, version: str, folder: Path) -> Dict[str, str]:
    """The pin of a release, whose wheel is put into the folder. What it holds is not checked: no lock knows it yet."""
    pin = {'name': name, 'version': version, 'wheel': f'{name}-{version}-py3-none-any.whl'}
    if not (folder / pin['wheel']).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            download_into(temporary, pin)
            os.replace(Path(temporary, pin['wheel']), folder / pin['wheel'])
    return {**pin, 'sha256': sha256(folder / pin['wheel'])}


def download_into(folder: str, pin: Mapping[str, str]) -> None:
    """Download with pip, under its own settings (index, find-links, offline)."""
    requirement = f"{pin['name']}=={pin['version']}"
    command = ['download', '--quiet', '--no-deps', '--only-binary', ':all:', '--dest', folder, requirement]
    result = subprocess.run([sys.executable, '-m', 'pip'] + command, capture_output=True, text=True)
    if result.returncode or not Path(folder, pin['wheel']).is_file():
        raise PatchsetError(
            requirement,
            f"pip could not download upstream's wheel ({reason(result.stderr)}); go online, point pip at a copy "
            f'(PIP_FIND_LINKS), or set {WHEEL_VARIABLE}=FILE',
        )


def reason(output: str) -> str:
    """The line of pip's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('ERROR:') and line != 'ERROR: Exception:']
    return (errors or lines or ['no output'])[-1].replace('ERROR: ', '')


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_package(wheel: Path, package: str = 'timm') -> Dict[str, bytes]:
    """All files of the package, by path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f'{package}/') and not name.endswith('/')]
        return {name: archive.read(name) for name in names}


def read_licence(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith('/licenses/LICENSE')))
