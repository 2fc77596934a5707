"""Moving to another release: nothing is written before everything is proven or named."""
import json
import shutil

import pytest

from patchset import __main__ as command_line
from patchset.upgrade import Proved
from patchset.project import Project, read_overlays
from patchset.upstream import read_package
from sandbox import NET, OVERLAY, STOCK, make_project, pin_wheel, snapshot, write, write_wheel


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL', raising=False)
    return make_project(tmp_path)


def publish(project, net):
    files = {**STOCK, 'timm/version.py': b"__version__ = '1.1'\n", 'timm/models/net.py': net}
    write_wheel(project.build_folder / 'upstream/timm-1.1-py3-none-any.whl', files)


def upgrade(project, monkeypatch, version, *arguments, proved=(Proved('net'),)):
    monkeypatch.setattr(command_line, 'prove_upgrade', lambda *_: iter(proved))
    return command_line.main(['upgrade', version, *arguments], project)


def sources(project):
    files = {path: data for path, (data, _) in snapshot(project.root).items() if not path.startswith('build')}
    return {**files, 'upstream.lock.json': json.loads(files['upstream.lock.json'])}


def test_change_of_the_moved_part_is_carried_and_back(project, monkeypatch, capsys):
    before = sources(project)
    publish(project, NET.replace(b'x = blk(x)', b'x = blk(x, 1)'))
    assert upgrade(project, monkeypatch, '1.1') == 0
    assert '1 carried' in capsys.readouterr().out
    assert b'x = blk(x, 1)' in project.check().changed['timm/models/net.py']
    assert upgrade(project, monkeypatch, '1.0') == 0
    assert sources(project) == before


def test_left_says_where_and_shows_the_diff(project, monkeypatch, capsys):
    publish(project, NET.replace(b'x = self.patch_embed(x)', b'x = self.patch_embed(x * 2)'))
    before = snapshot(project.root)
    assert upgrade(project, monkeypatch, '1.1') == 2
    printed = capsys.readouterr()
    assert 'left: timm/models/net.py:Net.forward_features' in printed.out and 'self.patch_embed(x * 2)' in printed.out
    assert 'nothing is written' in printed.err
    assert snapshot(project.root) == before


@pytest.mark.parametrize('proved, arguments, code', [
    ([Proved('net'), Proved('deep', 'operation 3')], [], 2),
    ([], [], 2),
    ([Proved('net'), Proved('odd', reason='it fails', place='timm/models/net.py:Odd')], [], 2),
    ([Proved('net'), Proved('odd', reason='it fails', place='timm/models/net.py:Odd')],
     ['--keep', 'timm/models/net.py:Odd'], 0),
])
def test_nothing_is_written_unless_all_is_proven_or_kept(project, monkeypatch, capsys, proved, arguments, code):
    publish(project, NET)
    before = sources(project)
    assert upgrade(project, monkeypatch, '1.1', *arguments, proved=proved) == code
    assert (sources(project) == before) == (code == 2)


def test_family_is_left_out_and_comes_back(project, monkeypatch):
    before = sources(project)
    publish(project, NET.replace(b'x = self.patch_embed(x)', b'x = self.patch_embed(x * 2)'))
    assert upgrade(project, monkeypatch, '1.1', '--without', 'net') == 0
    assert not (project.root / 'timm/models/net.py').exists()
    assert (project.root / 'without/1.0/timm/models/net.py').read_bytes() == OVERLAY
    assert upgrade(project, monkeypatch, '1.0') == 0
    assert sources(project) == before
    assert upgrade(project, monkeypatch, '1.1', '--without', 'nest') == 2


def test_module_that_the_release_cannot_import_is_left_or_kept_by_name(project, monkeypatch, capsys):
    write(project.root, 'timm/mim/more.py', b'from timm.models.net import Net, other\n')
    pin = NET + b'\n\ndef other():\n    pass\n'
    pin_wheel(project, {**STOCK, 'timm/models/net.py': pin})
    project.update_lock()
    publish(project, NET)
    before = sources(project)
    assert upgrade(project, monkeypatch, '1.1') == 2
    said = 'timm/mim/more.py: imports other from timm.models.net, which this release does not have'
    assert f'left: {said}' in capsys.readouterr().out
    assert sources(project) == before
    assert upgrade(project, monkeypatch, '1.1', '--keep', 'timm/mim/more.py') == 0
    assert 'kept: timm/mim/more.py imports other from timm.models.net' in capsys.readouterr().out


def test_real_proof_takes_the_equal_family_and_refuses_the_other(tmp_path, monkeypatch, capsys):
    """Two families on an invented release of timm: a change of what moves is carried, an operation more is found."""
    fork, project = Project(), Project(tmp_path)
    shutil.copytree(fork.root / 'tests/equivalence', tmp_path / 'tests/equivalence')
    overlays = dict(read_overlays(fork.root))
    families = ('timm/models/convmixer.py', 'timm/models/mlp_mixer.py')
    taken = ('timm/version.py', 'timm/models/__init__.py', *families)
    for path, data in overlays.items():
        if path in taken or path.startswith('timm/models/_'):
            write(tmp_path, path, data)
    mixer = overlays[families[1]].replace(b'        return x\n', b'        return x * 1\n')
    assert mixer != overlays[families[1]]
    write(tmp_path, families[1], mixer)
    folder = project.build_folder / 'upstream'
    folder.mkdir(parents=True)
    shutil.copy(fork.wheel(), folder)
    project.lock_file.write_text(json.dumps({'upstream': fork.pin}))
    project.update_lock()
    stock = read_package(fork.wheel())
    head, method, rest = stock[families[0]].partition(b'def forward_features')
    stock[families[0]] = head + method + rest.replace(b'x = self.blocks(x)', b'x = self.blocks(x * 2)', 1)
    stock['timm/version.py'] = b"__version__ = '1.0.99'\n"
    write_wheel(folder / 'timm-1.0.99-py3-none-any.whl', stock)
    before = sources(project)
    assert command_line.main(['upgrade', '1.0.99'], project) == 2
    said = capsys.readouterr()
    models = [line.strip() for line in said.out.splitlines() if ' (timm/models/' in line]
    assert '1 carried' in said.out and len(models) == 2, said
    assert next(m for m in models if 'ConvMixer' in m).endswith('ConvMixer): equal')
    wrong = next(m for m in models if 'MlpMixer' in m)
    assert 'operation' in wrong and 'mul' in said.out and '1 of 2 models are not proven' in said.err
    assert sources(project) == before
