"""Upstream's own tests against the fork. What fails is run again with stock timm: only a difference counts.

    python tests/upstream/run.py [arguments of pytest, such as -m torchscript]

Every outcome is written to build/upstream/fork.txt as soon as it is known, those of the second run to stock.txt.
"""
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
from patchset.project import exclusive  # noqa: E402

FOLDER = ROOT / 'build' / 'upstream'
FILES = [
    'test_models.py', 'test_model_input.py', 'test_layers.py', 'test_layers_drop.py', 'test_layers_pool.py',
    'test_layers_pos_embed.py', 'test_prune.py', 'test_task.py',
]
PARALLEL = ['--numprocesses=auto', '--dist=worksteal']


def fetch() -> None:
    """Unpack the tests of the pinned release's source distribution, by name and hash, unless they are there."""
    version = (HERE / 'sdist.txt').read_text().split()[0].removeprefix('timm==')
    sdist = FOLDER / f'timm-{version}.tar.gz'
    with exclusive(FOLDER / '.lock'):
        if sdist.exists() and (FOLDER / 'tests').is_dir():
            return
        shutil.rmtree(FOLDER / 'tests', ignore_errors=True)
        subprocess.run([
            sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', '--require-hashes',
            '--requirement', HERE / 'sdist.txt', '--dest', FOLDER], check=True)
        with tarfile.open(sdist) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix(f'timm-{version}/')
                if member.name.startswith('tests/'):  # the package beside them would shadow the installed one
                    archive.extract(member, FOLDER, filter='data')


def run(arguments: List[str], results: Path, package: Optional[Path] = None) -> Dict[str, str]:
    """Run pytest with the installed timm, or another package first on the path.

    Args:
        arguments: Of pytest.
        results: File for one line per test.
        package: Folder that holds another timm.

    Returns:
        Outcome of each test: passed, failed or skipped.
    """
    path = [str(HERE), *([str(package)] if package else []), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {
        'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': os.pathsep.join(path), 'RESULTS': str(results)}
    results.unlink(missing_ok=True)
    command = [
        sys.executable, '-m', 'pytest', f'--rootdir={FOLDER}', '-p', 'served_models', '-p', 'no:cacheprovider',
        '--quiet', '--tb=line', '--disable-warnings', *arguments]
    code = subprocess.run(command, cwd=FOLDER, env=environment).returncode
    if code not in (0, 1):  # all passed, some failed
        raise SystemExit(f'pytest did not run to its end (exit code {code}); what it found until then is in {results}')
    return dict(reversed(line.split(' ', 1)) for line in results.read_text().splitlines())


def main(arguments: List[str]) -> int:
    fetch()
    outcomes = run([*(f'tests/{file}' for file in FILES), *PARALLEL, *arguments], FOLDER / 'fork.txt')
    failed = [name for name, outcome in outcomes.items() if outcome == 'failed']
    in_stock = run([*failed, *PARALLEL], FOLDER / 'stock.txt', ROOT / 'build' / 'stock') if failed else {}
    here_only = [name for name in failed if in_stock.get(name) != 'failed']
    for name in failed:
        print('FAILS WITH THE FORK ONLY:' if name in here_only else 'fails with stock timm too:', name)
    count = Counter(outcomes.values())
    print(f'{count["passed"]} passed, {count["skipped"]} skipped, {count["failed"]} failed; '
          f'{len(failed) - len(here_only)} of these fail with stock timm too')
    return 1 if here_only else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
