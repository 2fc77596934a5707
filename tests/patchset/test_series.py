"""The series of patches: git takes it, and what it leaves is the woven tree."""
import os
import subprocess
from types import SimpleNamespace

import pytest

from patchset import __main__ as command_line
from patchset import PatchsetError
from patchset.project import Project
from patchset.series import Builder, write_series
from patchset.steps import LONGEST, Sources, imported_names, is_test, steps
from sandbox import NET, STOCK, make_project, snapshot, write

IDENTITY = {'GIT_AUTHOR_NAME': 'a', 'GIT_AUTHOR_EMAIL': 'a@b', 'GIT_COMMITTER_NAME': 'a', 'GIT_COMMITTER_EMAIL': 'a@b'}
SCRIPT = b'''import argparse

from timm import utils

parser = argparse.ArgumentParser()
parser.add_argument('--model')


def _parse_args():
    return parser.parse_args(), ''


def main():
    args, args_text = _parse_args()
    print(args)
'''


def git(folder, *arguments, fails=False):
    environment = {**os.environ, **IDENTITY, 'GIT_CONFIG_GLOBAL': os.devnull}
    result = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True, env=environment)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL', raising=False)
    project = make_project(tmp_path / 'fork')
    write(project.root, 'timm/mim/more.py', b'"""More of it."""\nfrom timm.models.net import Net\n')
    write(project.root, 'timm/mim/__init__.py', b'from .more import Net as Net\n')
    write(project.root, 'tests/mim/test_more.py', b'from timm.mim import Net\n\n\ndef test():\n    assert Net\n')
    project.update_lock()
    return project


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / 'clone'
    for path, data in {**STOCK, 'train.py': SCRIPT}.items():
        write(folder, path, data)
    git(folder, 'init', '-q')
    git(folder, 'add', '-A')
    git(folder, 'commit', '-qm', 'release')
    return folder


def am(clone, patches, **options):
    files = sorted(str(path) for path in patches.glob('*.patch'))
    return git(clone, 'am', '-q', '--3way', *files, **options)


def test_series_gives_the_woven_tree_and_nothing_else(project, clone, tmp_path):
    out = tmp_path / 'out'
    before = snapshot(clone)
    series = write_series(project, clone, out, cover=True)
    assert snapshot(clone) == before
    assert [patch.step.name for patch in series.patches] == ['net', 'mim', 'scripts']
    assert any('validate.py: left out' in note for note in series.notes)
    am(clone, out)
    woven = project.weave().woven
    for path in ('timm/models/net.py', 'timm/mim/__init__.py', 'timm/mim/more.py'):
        assert (clone / path).read_bytes() == woven[path]
    assert (clone / 'timm/version.py').read_bytes() == STOCK['timm/version.py']
    assert (clone / 'tests/mim/test_more.py').is_file()
    assert b'pretrain.add_arguments(parser)' in (clone / 'train.py').read_bytes()
    changed = git(clone, 'diff', '--name-only', 'HEAD~3').split()
    assert sorted(changed) == [
        'tests/mim/test_more.py', 'timm/mim/__init__.py', 'timm/mim/more.py', 'timm/models/net.py', 'train.py']
    subjects = git(clone, 'log', '--format=%s%n%ae %ad', '--date=unix', '-3')
    assert 'net: embed and forward_stages' in subjects and '1795219200' in subjects
    done = git(clone, 'rev-parse', 'HEAD')
    am(clone, out)  # git says of each that it is applied already
    assert git(clone, 'rev-parse', 'HEAD') == done
    git(clone, 'am', '-q', *sorted(map(str, out.glob('*.patch'))), fails=True)
    letter = (out / 'cover-letter.txt').read_text()
    assert '***' not in letter and 'Part of #2540' in letter


def test_same_bytes_whoever_runs_it(project, clone, tmp_path, monkeypatch):
    write_series(project, clone, tmp_path / 'one', cover=True)
    monkeypatch.setenv('GIT_COMMITTER_NAME', 'Somebody')
    monkeypatch.setenv('TZ', 'Asia/Tokyo')
    write_series(project, clone, tmp_path / 'two', cover=True)
    texts = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('one', 'two')]
    assert texts[0] == texts[1] and len(texts[0]) == 4


def test_merge_is_gits(project, clone, tmp_path):
    """Upstream went on: git merges what it can, and stops where both sides changed the same lines."""
    out = tmp_path / 'out'
    write_series(project, clone, out)
    write(clone, 'timm/models/net.py', NET.replace(b'self.blocks = []', b'self.blocks = [1]'))
    git(clone, 'commit', '-qam', 'elsewhere')
    am(clone, out)
    merged = (clone / 'timm/models/net.py').read_bytes()
    assert b'[1]' in merged and b'def forward_stages' in merged
    git(clone, 'reset', '-q', '--hard', 'HEAD~4')
    write(clone, 'timm/models/net.py', NET.replace(b'x = self.patch_embed(x)', b'x = self.patch_embed(x * 2)'))
    git(clone, 'commit', '-qam', 'the same line')
    am(clone, out, fails=True)
    assert '<<<<<<<' in (clone / 'timm/models/net.py').read_text()


def test_a_part_of_it(project, clone, tmp_path):
    out = tmp_path / 'out'
    git(clone, 'tag', 'v1.0')
    write(out, '0009-earlier.patch', b'')
    assert write_series(project, clone, out, only=['net']).written == [path.name for path in out.iterdir()]
    assert len(list(out.iterdir())) == 1
    am(clone, out)
    written = write_series(project, clone, out, only=['mim']).written
    assert len(written) == 1 and written[0].startswith('0002-')
    with pytest.raises(PatchsetError, match='--only nett: takes a step or a group of steps: .*mim, net'):
        write_series(project, clone, out, only=['nett'])


def test_what_runs_a_script_comes_with_it(project, clone):
    test = 'tests/mim/test_script.py'
    write(project.root, test, b"from timm.mim import Net\n\nSCRIPT = 'train.py'\n\n\ndef test():\n    assert Net\n")
    series = write_series(project, clone, None)
    assert [patch.step.name for patch in series.patches if test in patch.commit.files] == ['scripts']
    git(clone, 'rm', '-q', 'train.py')
    git(clone, 'commit', '-qm', 'a source distribution')
    series = write_series(project, clone, None)
    assert not any(test in patch.commit.files for patch in series.patches)
    assert any(note.startswith(f'{test}: left out') for note in series.notes)


def test_family_alone_brings_what_it_imports():
    sources = Sources(Project().root)
    wanted = [step for step in steps(sources) if step.name in ('eva', 'deepseek_vit')]
    found = Builder.alone(SimpleNamespace(sources=sources), wanted)
    assert [step.name for step in found] == ['qwen3_vit', 'deepseek_vit', 'eva']
    assert [step.paths[0] for step in found] == [f'timm/models/{step.name}.py' for step in found]
    there = set()
    for step in found:
        there.update(step.paths)
        assert set(sources.imports(step.paths[0])) <= there
    assert 'tests/test_embed_stages.py' in found[0].paths


def test_listing_writes_nothing(project, clone, capsys):
    assert command_line.main(['series', str(clone), '--dry-run'], project) == 0
    assert 'net ' in capsys.readouterr().out
    assert command_line.main(['series', str(clone)], project) == 2
    assert '-o DIR' in capsys.readouterr().err


def test_clone_that_is_not_the_release_is_refused(project, clone, tmp_path, capsys):
    write(clone, 'timm/models/net.py', NET + b'\n')
    git(clone, 'commit', '-qam', 'next')
    assert command_line.main(['series', str(clone), '-o', str(tmp_path / 'out')], project) == 2
    assert 'is not timm 1.0: timm/models/net.py differs' in capsys.readouterr().err
    git(clone, 'tag', 'v1.0', 'HEAD~1')
    assert command_line.main(['series', str(clone), '-o', str(tmp_path / 'out')], project) == 0
    for folder, said in ((tmp_path / 'none', 'is not a git repository'),):
        assert command_line.main(['series', str(folder), '-o', str(tmp_path / 'out')], project) == 2
        assert said in capsys.readouterr().err


def test_file_in_the_way_is_refused(project, clone, tmp_path):
    write(clone, 'timm/mim/more.py', b'')
    git(clone, 'add', '-A')
    git(clone, 'commit', '-qm', 'in the way')
    with pytest.raises(PatchsetError, match='timm/mim/more.py: is a new file of the fork'):
        write_series(project, clone, tmp_path / 'out')


def test_steps_of_the_real_fork():
    """Every file once, after what it imports; tests after all that they import; none too long to review."""
    sources = Sources(Project().root)
    there, names = set(), []
    for step in steps(sources):
        assert not there.intersection(step.paths)
        there.update(step.paths)
        names.append(step.name)
        for path in step.paths:
            if path.endswith('.py') and path in {**sources.modules, **sources.overlays, **sources.tests}:
                assert set(sources.imports(path)) <= there, path
        if step.kind not in ('family', 'fix', 'scripts', 'documentation'):
            assert sum(sources.text(path).count(b'\n') for path in step.paths) <= LONGEST or len(step.paths) == 1
    first = sources.exports('timm/models/__init__.py', {'timm/models/_embed_stages.py'})
    assert b'_embed_stages' in first and b'_model_class' not in first
    assert names[0] == 'vision_transformer' and len(names) == len(set(names))
    everything = {*sources.overlays, *sources.modules, *sources.tests, *sources.documents}
    left = everything - there - {'timm/models/__init__.py', 'timm/mim/__init__.py'}
    assert {path for path in left if not path.startswith('tests/')} == set()
    assert not [path for path in left if is_test(path)]
    assert all(list(imported_names(path, sources.text(path))) for path in there if is_test(path))
