"""Every way to install gives the same complete package; an editable one follows the overlays."""
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchset.editable import read_version
from patchset.project import Project
from patchset.upstream import WHEEL_VARIABLE, read_licence, read_package

VERSION = read_version(Project().root / 'timm' / 'version.py')
SOURCES = (
    'timm', 'recipes', 'patchset', 'tests', 'hatch_build.py', 'pyproject.toml', 'upstream.lock.json', 'LICENSE',
    'README.md')
pytestmark = pytest.mark.xdist_group('packaging')


def run(*command, **options):
    """Run a command that must succeed; its output is what a failure shows."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, f'{command}\n{result.stdout}\n{result.stderr}'
    return result.stdout


def pip(*arguments, **options):
    return run(sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments, **options)


@pytest.fixture(scope='module')
def wheel():
    return Project().wheel()


@pytest.fixture(scope='module')
def environment(wheel):
    """What builds run under: the wheel that is here already, whatever folder they work in."""
    return {**os.environ, WHEEL_VARIABLE: str(wheel.resolve()), 'PYTHONPATH': ''}


@pytest.fixture(scope='module')
def expected():
    project = Project()
    return project.shipped(project.weave())


def copy_project(folder):
    ignore = shutil.ignore_patterns('__pycache__', '.*', 'build')
    for name in SOURCES:
        source = Project().root / name
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    Project(folder).update_lock()
    return folder


@pytest.fixture(scope='module')
def clone(tmp_path_factory, environment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WHEEL_VARIABLE, environment[WHEEL_VARIABLE])
        return copy_project(tmp_path_factory.mktemp('clone'))


@pytest.fixture(scope='module')
def sdist(tmp_path_factory, clone, environment):
    """`python -m build --sdist` without the front end."""
    folder = tmp_path_factory.mktemp('sdist')
    code = 'import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))'
    run(sys.executable, '-c', code, folder, cwd=clone, env=environment)
    return next(folder.glob('*.tar.gz'))


def make_venv(folder):
    """An environment without pip that finds torch and the rest where this one does."""
    venv.create(folder, with_pip=False, symlinks=True)
    site_packages = Path(sysconfig.get_path('purelib', vars={'base': str(folder), 'platbase': str(folder)}))
    # .pth files of the outer environment do not run, so that its own timm stays out
    (site_packages / 'zz_outer.pth').write_text(outer_folder(folder))
    return folder / 'bin' / 'python'


def outer_folder(folder):
    """A folder of links to the installed packages but timm."""
    links = folder / 'outer'
    links.mkdir()
    for path in Path(sysconfig.get_path('purelib')).iterdir():
        if 'timm' not in path.name and path.suffix != '.pth':
            (links / path.name).symlink_to(path)
    return str(links)


def assert_complete(folder, expected):
    found = {path.relative_to(folder).as_posix(): path.read_bytes()
             for path in (folder / 'timm').rglob('*') if path.is_file() and path.suffix != '.pyc'}
    assert found == expected


def assert_complete_wheel(file, expected, wheel):
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {name: data for name, data in files.items() if name.startswith('timm/')} == expected
    info = f'timm-{VERSION}.dist-info'
    metadata = files[f'{info}/METADATA'].decode()
    for line in (f'Version: {VERSION}', 'Name: timm', 'License-File: LICENSE', 'Requires-Python: >=3.10'):
        assert line in metadata.splitlines()
    required = {re.split('[ ;<>=]', line[15:])[0] for line in metadata.splitlines()
                if line.startswith('Requires-Dist: ') and 'extra ==' not in line}
    assert {name.replace('_', '-') for name in required} >= {
        'torch', 'torchvision', 'pyyaml', 'huggingface-hub', 'safetensors'}
    assert files[f'{info}/licenses/LICENSE'].split()[:2] == [b'Apache', b'License']
    assert files[f'{info}/licenses/upstream/LICENSE'] == read_licence(wheel)
    assert not [name for name in files if not name.startswith(('timm/', info))]


def test_pip_wheel(clone, environment, expected, wheel, tmp_path):
    pip('wheel', '--no-deps', '--wheel-dir', tmp_path, clone, env=environment)
    assert_complete_wheel(next(tmp_path.glob('*.whl')), expected, wheel)


def test_sdist_holds_no_upstream_code(sdist, clone, wheel):
    stock = {data for data in read_package(wheel).values() if data.strip()}
    with tarfile.open(sdist) as archive:
        members = {m.name.split('/', 1)[1]: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    assert not [name for name, data in members.items() if data in stock or name.endswith('.whl')]
    assert {name for name in members if name.startswith('timm/')} == {
        path.relative_to(clone).as_posix() for path in (clone / 'timm').rglob('*') if path.is_file()}
    assert {'LICENSE', 'pyproject.toml', 'hatch_build.py', 'upstream.lock.json', 'patchset/weave.py'} <= set(members)


def test_wheel_from_sdist_with_the_installed_backend(sdist, environment, expected, wheel, tmp_path):
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp_path, sdist, env=environment)
    assert_complete_wheel(next(tmp_path.glob('*.whl')), expected, wheel)


def test_install_from_git(clone, environment, expected, wheel, tmp_path):
    """Also that nothing which git does not track is needed, and that pip fetches the wheel itself."""
    repository = tmp_path / 'repository'
    shutil.copytree(clone, repository, ignore=shutil.ignore_patterns('build', '__pycache__'))
    identity = ('-c', 'user.name=test', '-c', 'user.email=test@localhost')
    run('git', 'init', '--quiet', repository)
    run('git', '-C', repository, 'add', '.')
    run('git', '-C', repository, *identity, 'commit', '--quiet', '--message', 'test')
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {wheel.resolve().parent}".strip()
    settings = {key: value for key, value in environment.items() if key != WHEEL_VARIABLE}
    pip('install', '--no-deps', '--target', tmp_path / 'site', f'git+file://{repository}',
        env={**settings, 'PIP_FIND_LINKS': links})
    assert_complete(tmp_path / 'site', expected)


def uv_command():
    for command in ([shutil.which('uv')], [sys.executable, '-m', 'uv']):
        if command[0] and not subprocess.run([*command, '--version'], capture_output=True).returncode:
            return command
    pytest.skip('uv is not installed: pip install uv')


def test_uv_install(clone, environment, expected, tmp_path):
    """uv's build environments have no pip but for the one that the project asks for."""
    python = make_venv(tmp_path / 'venv')
    run(*uv_command(), 'pip', 'install', '--no-deps', '--link-mode', 'copy', '--python', python,
        '--cache-dir', tmp_path / 'cache', clone, env=environment)
    site_packages = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    assert_complete(site_packages, expected)


def test_build_failure_is_one_line(clone, environment, tmp_path):
    broken = copy_project_of(clone, tmp_path / 'broken')
    with open(broken / 'timm/models/eva.py', 'a') as file:
        file.write('\n\nclass Missspelt(Eva):\n    pass\n')
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path, broken]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    output = result.stdout + result.stderr
    assert result.returncode and 'Traceback' not in output
    assert 'patchset: timm/models/eva.py: Missspelt: the lock does not list this new class' in output
    assert not (broken / 'build' / 'timm').exists()


def copy_project_of(clone, folder):
    return Path(shutil.copytree(clone, folder, ignore=shutil.ignore_patterns('build', '__pycache__')))


@pytest.fixture(scope='module')
def editable(clone, environment, tmp_path_factory):
    """A clone, and a Python in which it is installed editable."""
    folder = tmp_path_factory.mktemp('editable')
    root = copy_project_of(clone, folder / 'clone')
    python = make_venv(folder / 'venv')
    pip('--python', python, 'install', '--no-deps', '--no-build-isolation', '--editable', root,
        env=with_backend(environment))
    return root, python


def with_backend(environment):
    return {**environment, 'PYTHONPATH': sysconfig.get_path('purelib')}


def use(editable, code, cwd, check=True, **variables):
    settings = {key: value for key, value in os.environ.items() if key not in (WHEEL_VARIABLE, 'PYTHONPATH')}
    result = subprocess.run(
        [str(editable[1]), '-c', code], capture_output=True, text=True, cwd=cwd, env={**settings, **variables})
    assert not check or result.returncode == 0, result.stderr
    return result


# `import timm` takes torch and seconds; this finds the package as an import does, without running its `__init__`
LIGHT = "import sys, types, importlib.util as u; s = u.find_spec('timm'); t = types.ModuleType('timm'); " \
    "t.__path__ = s.submodule_search_locations; sys.modules['timm'] = t; "


def test_editable_is_complete_and_says_its_version(editable, expected, tmp_path):
    root, python = editable
    assert_complete(root / 'build', expected)
    code = LIGHT + (
        'import timm.version, importlib.metadata as m; print(s.origin, timm.version.__version__, m.version("timm"))')
    for folder in (root, tmp_path):
        origin, version, metadata = use(editable, code, folder).stdout.split()
        assert (origin, version, metadata) == (str(root / 'build/timm/__init__.py'), VERSION, VERSION)


def test_script_and_pytest_in_the_clone_find_the_package(editable):
    """The folder `timm/` beside the script has no `__init__.py` and shadows nothing."""
    root, python = editable
    code = LIGHT + "\ndef test():\n    import timm.version\n    assert 'build' in timm.version.__file__\n\n\ntest()\n"
    (root / 'script_test.py').write_text(code)
    settings = {key: value for key, value in os.environ.items() if key not in (WHEEL_VARIABLE, 'PYTHONPATH')}
    run(python, 'script_test.py', cwd=root, env=settings)
    for extra in ([], ['-n', '2']):
        run(python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *extra, 'script_test.py', cwd=root, env=settings)


def test_edits_are_live_at_the_next_import(editable, tmp_path):
    root, python = editable
    overlay = root / 'timm/models/swin_transformer.py'
    before = overlay.read_text()
    code = LIGHT + "print('live edit' in open(t.__path__[0] + '/models/swin_transformer.py').read())"
    try:
        assert use(editable, code, tmp_path).stdout == 'False\n'
        overlay.write_text(before + '        # live edit\n')
        assert [use(editable, code, tmp_path).stdout for _ in range(2)] == ['True\n', 'True\n']
        # a new method is live too, and the line says what a build will ask for
        overlay.write_text(before + '\n    def live_edit(self):\n        return 1  # live edit\n')
        result = use(editable, code, tmp_path)
        assert result.stdout == 'True\n' and result.stderr.count('\n') == 1
        assert 'SwinTransformer.live_edit: the lock does not list this new function' in result.stderr
        # a mistake is an ImportError of one line, and what was woven stays
        woven = (root / 'build/timm/models/swin_transformer.py').read_bytes()
        overlay.write_text(before + '\n    def live_edit(self:\n')
        result = use(editable, code, tmp_path, check=False)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith(
            'ImportError: patchset: timm/models/swin_transformer.py: does not parse')
        assert (root / 'build/timm/models/swin_transformer.py').read_bytes() == woven
    finally:
        overlay.write_text(before)
    assert use(editable, code, tmp_path).stdout == 'False\n'


def test_many_processes_import_at_once_after_an_edit(editable, tmp_path):
    root, python = editable
    module = root / 'timm/mim/fresh.py'
    code = LIGHT + "t = types.ModuleType('timm.mim'); t.__path__ = [s.submodule_search_locations[0] + '/mim']; " \
        "sys.modules['timm.mim'] = t; from timm.mim.fresh import VALUE; print(VALUE)"
    try:
        for value in (1, 2):
            module.write_text(f'VALUE = {value}\n')
            with ThreadPoolExecutor(6) as pool:
                results = list(pool.map(lambda _: use(editable, code, tmp_path), range(6)))
            assert [result.stdout for result in results] == 6 * [f'{value}\n']
    finally:
        module.unlink()


def test_editable_install_leaves_another_timm_alone(editable, tmp_path):
    """Stock on PYTHONPATH, which the proofs of equivalence run, is imported whatever the overlays hold."""
    root, python = editable
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm/__init__.py').write_text('MINE = True\n')
    broken = root / 'timm/broken.py'
    broken.write_bytes(b'# Overlay: of nothing\n')
    try:
        assert use(editable, 'import timm; print(timm.MINE)', root, PYTHONPATH=str(tmp_path)).stdout == 'True\n'
    finally:
        broken.unlink()


def test_problem_of_an_editable_install_that_does_not_weave(editable):
    root, _ = editable
    broken = root / 'timm/broken.py'
    broken.write_bytes(b'# Overlay: of nothing\n')
    try:
        result = use(editable, 'from patchset import editable; print(editable.problem())', root)
        assert result.stdout == 'patchset: timm/broken.py: is an overlay, but upstream has no such file\n'
    finally:
        broken.unlink()


@pytest.mark.parametrize('case', ['none', 'stock', 'other', 'fork'])
def test_problem_says_in_one_line_which_timm_there_is(case, tmp_path):
    versions = {'stock': '1.0.31', 'other': '1.0.31+mim.0', 'fork': VERSION}
    if case != 'none':
        (tmp_path / 'timm').mkdir()
        (tmp_path / 'timm/__init__.py').write_text('raise SystemError("must not be imported")\n')
        (tmp_path / 'timm/version.py').write_text(f"__version__ = '{versions[case]}'\n")
    code = (
        'import json, sys; sys.path[:0] = sys.argv[1:]; '
        'from patchset import editable; print(json.dumps(editable.problem()))')
    root = Project().root
    problem = json.loads(run(sys.executable, '-I', '-S', '-c', code, tmp_path, root))
    if case == 'fork':
        assert problem is None
        return
    assert '\n' not in problem and f'pip install -e {root}' in problem
    assert {'none': 'not installed', 'stock': 'stock timm (1.0.31)', 'other': '1.0.31+mim.0'}[case] in problem
