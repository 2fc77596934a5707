"""Upstream's own tests against the fork. What fails is run again with stock timm: only a difference counts.

    python tests/upstream/run.py [arguments of pytest, such as -k forward_features]
"""
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree
from pathlib import Path
from typing import List, Optional, Set

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / 'build' / 'upstream'
FILES = [
    'test_models.py', 'test_model_input.py', 'test_layers.py', 'test_layers_drop.py', 'test_layers_pool.py',
    'test_layers_pos_embed.py', 'test_prune.py', 'test_task.py',
]


def fetch() -> None:
    """Unpack the tests of the pinned release's source distribution, by name and hash."""
    subprocess.run([
        sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', '--require-hashes',
        '--requirement', HERE / 'sdist.txt', '--dest', FOLDER], check=True)
    with tarfile.open(next(FOLDER.glob('timm-*.tar.gz'))) as archive:
        prefix = archive.getnames()[0].split('/')[0]
        for member in archive.getmembers():
            member.name = member.name[len(prefix) + 1:]
            if member.name.startswith('tests/'):  # the package beside them would shadow the installed one
                archive.extract(member, FOLDER, filter='data')


def run(arguments: List[str], report: Path, package: Optional[Path] = None) -> Set[str]:
    """Run pytest with the installed timm, or another package first on the path. Returns the tests that failed."""
    path = [str(HERE), *([str(package)] if package else [])]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(path)}
    subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'served_models', '-p', 'no:cacheprovider', '--quiet', '--tb=line',
         '--numprocesses=auto', f'--junitxml={report}', *arguments], cwd=FOLDER, env=environment)
    failed = set()
    for case in xml.etree.ElementTree.parse(report).iter('testcase'):
        if case.find('failure') is not None or case.find('error') is not None:
            failed.add('{}.py::{}'.format(case.get('classname').replace('.', '/'), case.get('name')))
    return failed


def main() -> int:
    fetch()
    arguments = sys.argv[1:] or []
    failed = run([*(f'tests/{file}' for file in FILES), *arguments], FOLDER / 'fork.xml')
    if not failed:
        return 0
    in_stock = run(sorted(failed), FOLDER / 'stock.xml', ROOT / 'build' / 'stock')
    for name in sorted(in_stock):
        print(f'fails with stock timm too: {name}')
    for name in sorted(failed - in_stock):
        print(f'FAILS WITH THE FORK ONLY: {name}')
    return 1 if failed - in_stock else 0


if __name__ == '__main__':
    sys.exit(main())
