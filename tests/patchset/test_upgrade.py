"""Moving to another release: what is merged, what is left, and that nothing is written before the proof."""
import hashlib
import json
from pathlib import Path

import pytest

from patchset import __main__ as command_line
from patchset.adapt import adapt
from patchset.errors import PatchsetError
from patchset.files import write_tree
from patchset.lock import read_lock
from patchset.project import Project
from patchset.proof import Proved, groups, prove, prove_first
from patchset.pull_request import VERSION
from patchset.tree import read_overlays
from patchset.upgrade import plan_upgrade
from patchset.upstream import read_package, release
from sandbox import NET, OVERLAY, STOCK, make_project, snapshot, write, write_wheel

NEXT = {**STOCK, 'timm/version.py': b"__version__ = '1.1'\n"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL', raising=False)
    return make_project(tmp_path)


def publish(project, **changed):
    """The next release, where pip would put it.

    Args:
        changed: Contents by the name of a module in timm/models.
    """
    files = {**NEXT, **{f'timm/models/{name}.py': data for name, data in changed.items()}}
    write_wheel(project.build_folder / 'upstream/timm-1.1-py3-none-any.whl', files)


def upgrade(project, monkeypatch, *arguments, proved=(Proved('net'),)):
    monkeypatch.setattr(command_line, 'prove_upgrade', lambda *_: iter(proved))
    return command_line.main(['upgrade', '1.1', *arguments], project)


def refused(project, monkeypatch, capsys, *parts, arguments=(), **options):
    before = snapshot(project.root)
    assert upgrade(project, monkeypatch, *arguments, **options) == 2
    printed = capsys.readouterr()
    for part in parts:
        assert part in printed.out + printed.err, printed
    assert snapshot(project.root) == before


def test_release_that_changes_the_moved_part_is_carried_along(project, monkeypatch, capsys):
    publish(project, net=NET.replace(b'x = blk(x)', b'x = blk(x, 1)'))
    assert upgrade(project, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert 'carried:   timm/models/net.py: Net.forward_features' in printed and '1 carried' in printed
    lock = read_lock(project.lock_file)['upstream']
    wheel = project.build_folder / 'upstream' / lock['wheel']
    assert lock == dict(
        name='timm', version='1.1', wheel='timm-1.1-py3-none-any.whl',
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert (project.root / 'timm/version.py').read_bytes().endswith(b"__version__ = '1.1+mim.1'\n")
    assert (project.root / 'timm/models/net.py').read_bytes() == OVERLAY
    tree = project.check()
    assert b'x = blk(x, 1)' in tree.changed['timm/models/net.py']


def test_way_back_restores_the_patch_set(project, monkeypatch):
    before = {path: data for path, (data, _) in snapshot(project.root).items() if not path.startswith('build')}
    publish(project, net=NET.replace(b'x = self.patch_embed(x)', b'x = self.patch_embed(x, y)'))
    assert upgrade(project, monkeypatch) == 0
    assert b"after='x = self.patch_embed(x, y)'" in (project.root / 'timm/models/net.py').read_bytes()
    assert command_line.main(['upgrade', '1.0'], project) == 0
    after = {path: data for path, (data, _) in snapshot(project.root).items() if not path.startswith('build')}
    assert json.loads(after.pop('upstream.lock.json')) == json.loads(before.pop('upstream.lock.json'))
    assert after == before


@pytest.mark.parametrize('proved, text', [
    ([Proved('net'), Proved('deep', 'operation 3: stock has')], 'deep: operation 3'),
    ([], '0 of 0 models'),
    ([Proved('net', reason='NotImplementedError')], 'cannot be compared, stock timm fails: NotImplementedError'),
])
def test_nothing_is_written_unless_the_proof_holds(project, monkeypatch, capsys, proved, text):
    publish(project)
    refused(project, monkeypatch, capsys, text, proved=proved)


def test_nothing_is_written_while_something_is_left(project, monkeypatch, capsys):
    publish(project, net=NET.replace(
        b'        x = self.patch_embed(x)\n', b'        x = self.patch_embed(x)[0] if x else x\n        y = 0\n'))
    refused(
        project, monkeypatch, capsys, 'left:      timm/models/net.py: Net.forward_stages: upstream has no statement',
        'nothing is written', '--keep')


def test_what_a_person_has_looked_at_is_kept(project, monkeypatch, capsys):
    write(project.root, 'timm/models/net.py', OVERLAY + b'\n    def pool(self, x):\n        return 2 * x\n')
    project.update_lock()
    publish(project, net=NET.replace(b'pool(self, x):\n        return x', b'pool(self, x):\n        return 3 * x'))
    refused(project, monkeypatch, capsys, 'left:      timm/models/net.py: Net.pool')
    refused(project, monkeypatch, capsys, '--keep', arguments=['--keep', 'timm/models/nest.py:Net.pool'])
    assert upgrade(project, monkeypatch, '--keep', 'timm/models/net.py:Net.pool') == 0
    capsys.readouterr()
    assert upgrade(project, monkeypatch, '--keep', 'timm/models/nest.py:Net.pool') == 2
    assert '--keep timm/models/nest.py:Net.pool' in capsys.readouterr().err
    assert b'return 2 * x' in project.check().changed['timm/models/net.py']


def test_overlay_that_a_person_made_fit_is_taken(project, monkeypatch, capsys):
    publish(project, net=NET.replace(b'x = self.patch_embed(x)\n', b'x = self.stem(x)\n        x = self.grid(x)\n'))
    refused(project, monkeypatch, capsys, 'left: ')
    write(project.root, 'timm/models/net.py', OVERLAY.replace(
        b"after='x = self.patch_embed(x)'", b"after='x = self.grid(x)', without=()"))
    refused(project, monkeypatch, capsys, 'nor does it weave into the other version', 'x = self.stem(x)')
    write(project.root, 'timm/models/net.py', OVERLAY.replace(
        b'after=', b'start=').replace(b'self.patch_embed(x)', b'self.stem(x)', 1))
    assert upgrade(project, monkeypatch) == 0
    assert 'edited:    timm/models/net.py' in capsys.readouterr().out


def test_names_that_a_new_file_imports_and_the_release_lacks_are_named(project, monkeypatch, capsys):
    imports = (
        b'from timm.models.net import Net, nn, gone\nfrom ..version import old\n'
        b'try:\n    from timm.models.net import newer\nexcept ImportError:\n    newer = None\n')
    write(project.root, 'timm/mim/__init__.py', imports)
    publish(project)
    upgrade(project, monkeypatch)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith('missing')] == [
        'missing:   timm/mim/__init__.py: imports gone from timm.models.net, which upstream does not have',
        'missing:   timm/mim/__init__.py: imports old from timm.version, which upstream does not have']


def test_new_upstream_files_are_named(project, monkeypatch, capsys):
    publish(project, fresh=b'class Fresh:\n    def forward_features(self, x):\n        return x\n', util=b'')
    assert upgrade(project, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert 'new:       timm/models/fresh.py' in printed and 'util' not in printed


def test_new_file_that_upstream_has_now_is_left(project, monkeypatch, capsys):
    write(project.root, 'timm/models/util.py', b'OURS = 1\n')
    project.update_lock()
    publish(project, util=b'THEIRS = 1\n')
    refused(project, monkeypatch, capsys, 'left:      timm/models/util.py: upstream has a file of that name')


class Process:
    """Stands for stock timm or the fork: answers by model, a list of operations or an error."""

    def __init__(self, **answers):
        self.answers = answers

    def ask(self, function, name, composed=False):
        self.result = self.answers[name] if function == 'operations' else name in self.answers

    def read(self):
        return {'error': self.result} if isinstance(self.result, str) else {'result': self.result}

    def answer(self):
        return self.read()['result']


class Entry:

    def __init__(self, name, class_name='Net', parameters=1):
        self.name, self.module, self.class_name, self.parameters = name, 'net', class_name, parameters


def compare(ours, theirs):
    return None if ours == theirs else 'differs'


@pytest.mark.parametrize('ours, theirs, expected', [
    (['a'], ['a'], Proved('net')),
    (['a'], ['b'], Proved('net', 'differs')),
    ('failed', ['a'], Proved('net', 'failed')),
    ('failed', 'failed too', Proved('net', reason='failed too')),
])
def test_proof_of_a_model(ours, theirs, expected):
    assert list(prove_first([Entry('net')], Process(net=theirs), Process(net=ours), compare)) == [expected]


def test_proof_takes_a_small_model_of_each_class_that_is_served():
    entries = [Entry('large', parameters=9), Entry('small'), Entry('other', 'Other'), Entry('gone', parameters=0)]
    assert [[entry.name for entry in models] for models in groups(entries, False)] == [
        ['gone', 'small', 'large'], ['other']]
    assert len(groups(entries, True)) == 4
    process = Process(small=[], large=[])
    proved = [p.name for models in groups(entries, False) for p in prove_first(models, process, process, compare)]
    assert proved == ['small']


RELEASES = json.loads(Path(__file__).parents[2].joinpath('patchset/releases.json').read_text())


@pytest.fixture(scope='module', params=RELEASES, ids=lambda entry: entry['version'])
def entry(request):
    return request.param


def test_patch_set_weaves_into_other_releases_and_is_stock_timm_there(entry, request):
    """By default models whose text upstream changed under the overlays, and on the newest of the releases only."""
    project, version = Project(), entry['version']
    pin = release('timm', version, project.build_folder / 'upstream')
    assert pin['sha256'] == entry['sha256']
    old, stock = read_package(project.wheel()), read_package(project.build_folder / 'upstream' / pin['wheel'])
    adapted = {
        path: adapt(old[path], stock.get(path), data, path)
        for path, data in read_overlays(project.root) if path in old and path != VERSION}
    assert [path for path, result in adapted.items() if result.woven is None] == entry['without']

    thorough = request.config.getoption('--all-models')
    if entry is not RELEASES[0] and not thorough:
        return
    woven = {path: data for path, data in read_overlays(project.root) if path not in old}
    woven.update({path: result.woven for path, result in adapted.items() if result.woven is not None})
    woven[VERSION] = stock[VERSION].replace(b"'\n", b"+mim.0'\n")
    folder = project.build_folder / 'upgrade' / version
    write_tree(stock, folder / 'stock', 'timm')
    write_tree({**stock, **woven}, folder / 'woven', 'timm')
    moved = {Path(path).stem for path, a in adapted.items() for n in a.notes if n.kind in ('carried', 'merged')}
    modules = None if thorough else {'vision_transformer', 'eva', *moved}
    proved = [model for model in prove(project.root, folder / 'stock', folder / 'woven', False, modules)
              if model.reason is None]
    assert len(proved) >= 5 and [model for model in proved if model.problem] == []


def test_readme_names_the_releases():
    readme = Path(__file__).parents[2].joinpath('README.md').read_text()
    assert all(entry['version'] in readme for entry in RELEASES)


def test_unknown_release_is_refused(project, monkeypatch):
    def no_such_release(folder, pin):
        raise PatchsetError(f'timm=={pin["version"]}', 'pip could not download')
    monkeypatch.setattr('patchset.upstream.download_into', no_such_release)
    before = snapshot(project.root)
    with pytest.raises(PatchsetError, match='timm==9.9: pip could not'):
        plan_upgrade(project, '9.9')
    assert snapshot(project.root) == before
