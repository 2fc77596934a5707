"""A git tree of upstream, which the pull request is made in."""
import os
import subprocess
from pathlib import Path
from typing import Dict, Iterator, Optional

from .errors import PatchsetError
from .files import replace_files
from .tree import PACKAGE

VERSIONS = 20  # how far back in a file's history to look for the state before the pull request


class Checkout:
    """Work tree of a clone of upstream."""

    def __init__(self, root: Path):
        self.root = Path(root).resolve()
        if not (self.root / PACKAGE / '__init__.py').is_file():
            raise PatchsetError(str(root), f'is not a tree of upstream: it has no {PACKAGE}/__init__.py')
        top = self.git('rev-parse', '--show-toplevel')
        if top is None or Path(top.decode().strip()).resolve() != self.root:
            raise PatchsetError(str(root), "is not the root of a git tree; 'git init' and a commit make it one")

    def read(self, path: str) -> Optional[bytes]:
        file = self.root / path
        return file.read_bytes() if file.is_file() else None

    def package(self) -> Dict[str, bytes]:
        """All Python files of the package, by path."""
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in (self.root / PACKAGE).rglob('*.py')}

    def earlier(self, path: str) -> Iterator[bytes]:
        """Committed versions of a file that differ from the one that lies there, newest first."""
        current, seen = self.read(path), set()
        commits = self.git('log', f'--max-count={VERSIONS}', '--format=%H', '--', path) or b''
        for commit in commits.decode().split():
            data = self.git('show', f'{commit}:{path}')
            if data is not None and data != current and data not in seen:
                seen.add(data)
                yield data

    def write(self, files: Dict[str, bytes]) -> None:
        """All files, or none."""
        replace_files({self.root / path: data for path, data in files.items()}, self.root)

    def git(self, *arguments: str) -> Optional[bytes]:
        """Output of a git command, None if it fails."""
        # a hook that runs this has variables of another tree
        environment = {key: value for key, value in os.environ.items() if not key.startswith('GIT_')}
        result = subprocess.run(['git', *arguments], cwd=self.root, env=environment, capture_output=True)
        return None if result.returncode else result.stdout
