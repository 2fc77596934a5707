"""Moving to another release: nothing is written before everything is proven or named."""
import json

import pytest

from patchset import __main__ as command_line
from patchset.upgrade import Proved
from sandbox import NET, OVERLAY, STOCK, make_project, snapshot, write_wheel


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
