"""What a run runs on: versions, the commit of this package, the machine."""
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Dict, Optional

import torch

import timm
from .command import typed_command

_OWN_FILE = 'upstream.lock.json'  # at the top of this package's repository, and of no other


def describe_environment(device: torch.device, world_size: int = 1) -> Dict[str, str]:
    """Return what a run runs on, by name.

    Args:
        device: Device that is trained on.
        world_size: Number of processes.
    """
    commit = package_commit()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return {
        'timm': timm.__version__ + (f', commit {commit}' if commit else ''),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'system': platform.platform(),
        'device': f'{device.type} ({name})' + (f', {world_size} processes' if world_size > 1 else ''),
        'command': typed_command(),
    }


def package_commit() -> Optional[str]:
    """Return the commit of this package where it was installed by git's address, or lies in its repository.

    Changes that were not committed show as a plus.
    """
    try:
        origin = json.loads(distribution('timm').read_text('direct_url.json') or '{}')
    except (PackageNotFoundError, ValueError):
        origin = {}
    commit = origin.get('vcs_info', {}).get('commit_id')
    if commit:
        return commit[:12]
    folder = Path(timm.__file__).parent
    root = _git(folder, 'rev-parse', '--show-toplevel')
    if not root or not (Path(root) / _OWN_FILE).is_file():
        return None
    changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
    commit = _git(folder, 'rev-parse', '--short=12', 'HEAD')
    return commit and commit + ('+' if changed else '')


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
