"""Upstream's own tests of its scripts against ours: the files that drive train.py, validate.py and class_weights.py.

    python tests/upstream/run_scripts.py [arguments of pytest, such as -k resume]

Unmodified, and every failure counts.
"""
import os
import subprocess
import sys
from pathlib import Path
from typing import List

from run import FOLDER, HERE, ROOT, fetch

FILES = ['test_train_resume.py', 'test_checkpoint_loading.py', 'test_multilabel.py']


def main(arguments: List[str]) -> int:
    """Run them with the scripts in the root of the repository. Returns the exit status of pytest."""
    if not all((FOLDER / 'tests' / file).exists() for file in FILES):
        fetch()
    path = [p for p in sys.path if p and Path(p) != HERE]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([*path, str(ROOT)]), 'HF_HUB_OFFLINE': '1'}
    return subprocess.run(
        [sys.executable, '-m', 'pytest', f'--rootdir={FOLDER}', '-p', 'no:cacheprovider', '--quiet', '--tb=short',
         *(f'tests/{file}' for file in FILES), *arguments], cwd=FOLDER, env=environment).returncode


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
