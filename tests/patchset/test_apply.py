"""The pull request on a small tree of upstream: what is written, in which steps, and that it is all or nothing."""
import os
import stat
import subprocess

import pytest

from patchset import files
from patchset.__main__ import main
from patchset.apply import UpstreamDiffers, apply
from patchset.errors import PatchsetError
from patchset.project import Project
from patchset.pull_request import FAMILY_TEST_SOURCE, PullRequest, family_of
from patchset.upstream import read_package
from sandbox import NET, STOCK, make_project, pin_wheel, write

EXPORTS = b'from ._builder import build\nfrom .net import *\n'
WIDE = NET.replace(b'Net', b'Wide').replace(
    b'        x = self._pos_embed(x)\n', b'        x = self._pos_embed(x)\n        x = self.drop(x)\n')
TRAIN = b'''#!/usr/bin/env python3
import argparse

from timm.models import create_model

parser = argparse.ArgumentParser()
group = parser.add_argument_group('Last')
group.add_argument(
    '--last',
)


def _parse_args():
    return parser.parse_args(), ''


def main():
    args, args_text = _parse_args()

    create_model(args.last)
'''
VALIDATE = b'''import argparse

from timm.models import create_model

parser = argparse.ArgumentParser()
parser.add_argument('--last')


def validate(args):
    create_model(args.last)


def main():
    args = parser.parse_args()
    validate(args)
'''
CONTENTS = b'''- sections:
  - local: index
    title: Home
  title: Start
- sections:
  - local: reference/models
    title: Models
  title: Reference
'''
SCRIPTS = {'train.py': TRAIN, 'validate.py': VALIDATE}
UPSTREAM = {**STOCK, 'timm/models/__init__.py': EXPORTS, 'timm/models/wide.py': WIDE}
OVERLAY = b'''# Overlay: a test.
from ._mixin import EmbedStagesMixin


class Net(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x):
        ...
'''
FORK = {
    'timm/models/net.py': OVERLAY,
    'timm/models/wide.py': b'''# Overlay: a test.
from ._helper import helper
from ._mixin import EmbedStagesMixin


class Wide(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.drop(x)')
    def embed_positions(self, x):
        ...
        return x

    @moved_from('forward_features', after='x = self.drop(x)')
    def forward_stages(self, x):
        ...

    def pool(self, x):
        # ours
        return helper(x)

    extra = 2
''',
    'timm/models/__init__.py': b'''# Overlay: a test.
from ._helper import helper as helper
from ._mixin import EmbedStagesMixin as EmbedStagesMixin
''',
    'timm/models/_mixin.py': b'class EmbedStagesMixin:\n    pass\n',
    'timm/models/_helper.py': b'def helper(x):\n    return x\n',
    'timm/mim/__init__.py': b'from timm.models import EmbedStagesMixin\n',
    'patchset/upstream_tests/test_embed_stages.py': b"MODELS = {\n    'net': 1,\n    'wide': 2,\n}\n",
    'tests/mim/test_mim.py': b'from tiny import TINY\nimport timm.mim\n',
    'tests/mim/tiny.py': b'TINY = 1\n',
    'tests/mim/test_parity.py': b'import reference\n',
    'tests/mim/reference.py': b'import transformers.models\n',
    'tests/mim/unused.py': b'',
    'tests/train/test_recipes.py': b'',
    'tests/train/test_given_arguments.py': b'',
    'tests/models/test_proof.py': b'from probe import operations\n',
    'tests/equivalence/probe.py': b'',
    'tests/patchset/test_apply.py': b'',
    'hfdocs/source/mim.mdx': b'# Masked image modeling\n\n![Run](images/run.png)\n',
    'recipes/short.yaml': b'mim: simmim\n',
    'examples/maskfeat.py': b'',
    'examples/other.py': b'',
    'hfdocs/source/images/run.png': b'\x89PNG\r\n\x1a\n\x00\xff',
    'hfdocs/source/_toctree.yml': b'''- sections:
  - local: mim
    title: Masked Image Modeling
  title: Start
- sections:
  - local: reference/mim
    title: MIM
  title: New
''',
}
NEW = {
    'timm/models/_mixin.py', 'timm/models/_helper.py', 'timm/mim/__init__.py', 'tests/test_embed_stages.py',
    'tests/mim/test_mim.py', 'tests/mim/tiny.py', 'tests/train/test_given_arguments.py', 'hfdocs/source/mim.mdx',
    'hfdocs/source/images/run.png', 'recipes/short.yaml', 'examples/maskfeat.py',
}
CHANGED = {
    'timm/models/net.py', 'timm/models/wide.py', 'timm/models/__init__.py', 'train.py', 'validate.py',
    'hfdocs/source/_toctree.yml',
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL', raising=False)
    project = make_project(tmp_path / 'fork')
    for path, data in FORK.items():
        write(project.root, path, data)
    pin_wheel(project, UPSTREAM)
    project.update_lock()
    return project


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / 'upstream')


def make_tree(root, **changed):
    """A git tree of upstream.

    Args:
        changed: Other contents by the name of a module in timm/models.
    """
    modules = {f'timm/models/{name}.py': data for name, data in changed.items()}
    for path, data in {**UPSTREAM, 'hfdocs/source/_toctree.yml': CONTENTS, **SCRIPTS, **modules}.items():
        write(root, path, data)
    (root / 'train.py').chmod(0o755)
    git(root, 'init', '--quiet')
    commit(root)
    return root


def git(root, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith('GIT_')}
    command = ['git', '-c', 'user.name=test', '-c', 'user.email=test', *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def commit(root):
    git(root, 'add', '--all')
    git(root, 'commit', '--quiet', '--message', 'commit')


def state(root):
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob('*')) if path.is_file() and '.git' not in path.parts
    }


def contents(root):
    return {path: data for path, (data, _) in state(root).items()}


def refused(project, tree, *parts, **options):
    before = state(tree)
    with pytest.raises(PatchsetError) as error:
        apply(project, tree, **options)
    text = '\n'.join([str(error.value), *map(str, getattr(error.value, 'notes', []))])
    for part in parts:
        assert part in text, text
    assert state(tree) == before
    return error.value


def test_whole_pull_request_touches_what_it_must_and_nothing_else(project, tree):
    before = contents(tree)
    applied = apply(project, tree)
    after = contents(tree)
    assert set(after) - set(before) == NEW
    assert {path for path in before if after[path] != before[path]} == CHANGED
    assert set(applied.written) == NEW | CHANGED and applied.notes == []
    woven = project.check().changed
    for path in NEW | CHANGED:
        if path.startswith('timm/'):
            assert after[path] == woven[path], 'woven, without a notice'
    assert after['timm/version.py'] == STOCK['timm/version.py']


def test_second_run_touches_nothing_even_after_a_commit(project, tree):
    apply(project, tree)
    before = state(tree)
    assert apply(project, tree).written == []
    commit(tree)
    write(tree, 'README.md', b'more')
    commit(tree)
    assert apply(project, tree).written == []
    after = state(tree)
    del after['README.md']
    assert after == before


def test_tree_that_was_committed_with_the_pull_request_in_it_is_right_as_it_is(project, tree):
    apply(project, tree)
    for file in ('train.py', 'hfdocs/source/_toctree.yml'):
        git(tree, 'add', file)
    (tree / '.git').rename(tree / 'old')  # a shallow clone knows no earlier version
    git(tree, 'init', '--quiet')
    (tree / 'old').rename(tree.with_name('old'))
    commit(tree)
    assert apply(project, tree, only='net').written == []


def test_training_script_gets_flags_and_hand_over_and_keeps_its_mode(project, tree):
    apply(project, tree)
    expected = TRAIN.decode().replace(
        'from timm.models import', 'from timm.mim import pretrain\nfrom timm.models import').replace(
        "    '--last',\n)\n", "    '--last',\n)\n\n# Masked image modeling parameters\npretrain.add_arguments(parser)\n"
    ).replace(
        '_parse_args()\n\n    create',
        '_parse_args()\n    if args.mim:\n        pretrain.run(pretrain.given_arguments(parser))\n        return\n\n'
        '    create')
    assert (tree / 'train.py').read_text() == expected
    assert stat.S_IMODE((tree / 'train.py').stat().st_mode) == 0o755


def test_validation_script_gets_them_too(project, tree):
    apply(project, tree)
    expected = VALIDATE.decode().replace(
        'from timm.models import',
        'from timm.mim.pretrain import given_arguments, validate as pretraining\nfrom timm.models import').replace(
        "'--last')\n", "'--last')\n\n# Masked image modeling parameters\npretraining.add_arguments(parser)\n").replace(
        'parse_args()\n', 'parse_args()\n    if args.mim:\n        pretraining.run(given_arguments(parser))\n'
                          '        return\n')
    assert (tree / 'validate.py').read_text() == expected


@pytest.mark.parametrize('gone, name', [
    (b'group.add_argument', 'add_argument'),
    (b'args, args_text', 'args, args_text = _parse_args()'),
    (b'def main', 'main'),
    (b'def _parse_args', '_parse_args'),
])
def test_script_without_the_place_is_refused_by_name_and_nothing_is_written(project, tree, gone, name):
    write(tree, 'train.py', TRAIN.replace(gone, b'other' if gone[:3] != b'def' else b'def other', 1))
    refused(project, tree, 'train.py', name)


def test_script_that_has_something_of_its_own_is_refused(project, tree):
    write(tree, 'train.py', TRAIN.replace(b'import argparse', b'import argparse\nfrom timm.mim import pretrain'))
    refused(project, tree, 'train.py: imports timm.mim already')


def test_contents_get_entries_in_sections_of_the_same_title_and_new_sections(project, tree):
    apply(project, tree)
    first, last = CONTENTS.split(b'  title: Start\n')
    added = b'  - local: mim\n    title: Masked Image Modeling\n'
    new = b'- sections:\n  - local: reference/mim\n    title: MIM\n  title: New\n'
    assert (tree / 'hfdocs/source/_toctree.yml').read_bytes() == first + added + b'  title: Start\n' + last + new


def test_contents_of_another_form_are_refused(project, tree):
    write(tree, 'hfdocs/source/_toctree.yml', b'- sections:\n  - title: Home\n    local: index\n  title: Start\n')
    refused(project, tree, 'hfdocs/source/_toctree.yml')


def test_pages_need_an_entry(project, tree):
    write(project.root, 'hfdocs/source/reference/more.mdx', b'# More\n')
    refused(project, tree, 'hfdocs/source/_toctree.yml: has no entry for more.mdx')
    (project.root / 'hfdocs/source/reference/more.mdx').unlink()
    (project.root / 'hfdocs/source/_toctree.yml').unlink()
    refused(project, tree, 'has no entry for mim.mdx')


def test_steps_add_up_to_the_whole(project, tree, tmp_path):
    whole = make_tree(tmp_path / 'whole')
    apply(project, whole)
    for step in ('net', 'wide', 'mim'):
        apply(project, tree, only=step)
        commit(tree)
        assert apply(project, tree, only=step).written == []
    assert contents(tree) == contents(whole)


def test_a_step_brings_what_its_family_needs_and_no_more(project, tree):
    assert set(apply(project, tree, only='net').written) == {
        'timm/models/net.py', 'timm/models/_mixin.py', 'timm/models/__init__.py', 'tests/test_embed_stages.py'}
    exports = (tree / 'timm/models/__init__.py').read_text()
    assert 'EmbedStagesMixin' in exports and 'helper' not in exports
    assert (tree / 'tests/test_embed_stages.py').read_text() == "MODELS = {\n    'net': 1,\n}\n"
    apply(project, tree, only='wide')
    assert 'helper' in (tree / 'timm/models/__init__.py').read_text()
    assert (tree / 'tests/test_embed_stages.py').read_bytes() == FORK['patchset/upstream_tests/test_embed_stages.py']


def test_rest_comes_last(project, tree):
    apply(project, tree, only='wide')
    refused(project, tree, 'comes last', 'net', only='mim')
    refused(project, tree, 'net', 'wide', only='nest')


@pytest.mark.parametrize('path', ['timm/models/_mixin.py', 'tests/mim/tiny.py', 'tests/test_embed_stages.py'])
def test_other_file_in_the_way_is_refused(project, tree, path):
    write(tree, path, b'theirs\n')
    refused(project, tree, f'{path}: is in the way')


def test_folder_that_is_no_git_tree_of_upstream_is_refused(project, tree, tmp_path):
    refused(project, tree / 'timm', 'is not a tree of upstream')
    (tree / 'inner/timm').mkdir(parents=True)
    write(tree, 'inner/timm/__init__.py', b'')
    refused(project, tree / 'inner', 'is not the root of a git tree')


def test_failure_while_writing_restores_what_was_written(project, tree, monkeypatch):
    before, real, calls = contents(tree), os.replace, []

    def full_disk(source, target):
        calls.append(target)
        if len(calls) == 5:
            raise OSError('No space left on device')
        real(source, target)

    monkeypatch.setattr(files.os, 'replace', full_disk)
    with pytest.raises(OSError, match='No space left'):
        apply(project, tree)
    assert len(calls) == 5 and contents(tree) == before


def test_tree_at_another_commit_is_refused_and_every_method_that_differs_is_named(project, tmp_path):
    tree = make_tree(
        tmp_path / 'other',
        net=NET.replace(b'        x = blk(x)', b'        x = blk(x, 1)'),
        wide=WIDE.replace(b'self.blocks = []', b'self.blocks = [1]').replace(
            b'def pool(self, x):\n', b'def pool(self, x):\n        x = x + 1\n').replace(
            b'            x = blk', b'            x = 2 * blk'))
    error = refused(
        project, tree, 'net.py: Net.forward_features', 'wide.py: Wide.__init__', 'wide.py: Wide.pool',
        'wide.py: Wide.forward_features')
    assert isinstance(error, UpstreamDiffers) and len(error.notes) == 4


def notes_of(project, tree):
    applied = apply(project, tree, merge=True)
    before = state(tree)
    assert apply(project, tree, merge=True).written == [] and state(tree) == before
    return applied, {note.text.split(':')[0]: note.kind for note in applied.notes}


def test_merge_carries_what_upstream_changed_in_the_moved_part(project, tmp_path):
    tree = make_tree(tmp_path / 'other', net=NET.replace(b'            x = blk(x)', b'            x = blk(x, 1)'))
    _, notes = notes_of(project, tree)
    assert notes == {'Net.forward_features': 'carried'}
    assert apply(project, tree).written == [], 'what was merged needs no --merge again'
    assert b'def forward_stages(self, x):\n        x = self._pos_embed(x)\n        for blk in self.blocks:\n' \
           b'            x = blk(x, 1)\n' in (tree / 'timm/models/net.py').read_bytes()


def test_merge_of_a_replaced_method_has_both_sides(project, tmp_path):
    pooled = b'    def pool(self, x):\n        %s\n        y = 1\n        z = 1\n        return x\n'
    stock = WIDE.replace(b'    def pool(self, x):\n        return x\n', pooled % b'w = 1')
    theirs = WIDE.replace(b'    def pool(self, x):\n        return x\n', pooled % b'w = 2')
    ours = FORK['timm/models/wide.py'].replace(
        b'    def pool(self, x):\n        # ours\n        return helper(x)\n',
        (pooled % b'w = 1').replace(b'return x', b'return helper(x)'))
    write(project.root, 'timm/models/wide.py', ours)
    pin_wheel(project, {**UPSTREAM, 'timm/models/wide.py': stock})
    project.update_lock()
    tree = make_tree(tmp_path / 'other', wide=theirs)
    _, notes = notes_of(project, tree)
    assert notes == {'Wide.pool': 'merged'}
    assert (pooled % b'w = 2').replace(b'return x', b'return helper(x)') in (tree / 'timm/models/wide.py').read_bytes()


def test_merge_leaves_a_file_with_a_conflict_as_it_is_and_weaves_the_others(project, tmp_path):
    theirs = WIDE.replace(b'    def pool(self, x):\n        return x', b'    def pool(self, x):\n        return 2 * x')
    tree = make_tree(tmp_path / 'other', wide=theirs)
    applied, notes = notes_of(project, tree)
    assert notes == {'Wide.pool': 'left'}
    assert (tree / 'timm/models/wide.py').read_bytes() == theirs
    assert b'EmbedStagesMixin' in (tree / 'timm/models/net.py').read_bytes()
    assert (tree / 'tests/test_embed_stages.py').read_text() == "MODELS = {\n    'net': 1,\n}\n"
    refused(project, tree, 'Wide.pool', only='wide', merge=True)
    assert apply(project, tree, only='mim', merge=True).written == []


def test_merge_finds_the_statement_that_took_the_place_of_an_anchor(project, tmp_path):
    tree = make_tree(tmp_path / 'other', wide=WIDE.replace(b'x = self.drop(x)', b'x = self.patch_drop(x, "y")'))
    _, notes = notes_of(project, tree)
    assert notes == {'Wide.forward_features': 'merged'}
    woven = (tree / 'timm/models/wide.py').read_bytes()
    assert b'        x = self.patch_drop(x, "y")\n        return x\n\n    def forward_stages' in woven


@pytest.mark.parametrize('change, text', [
    ((b'        x = self.drop(x)\n', b''), 'Wide.embed_positions: upstream has no statement'),
    ((b'class Wide', b'class Wider'), 'Wide: is gone upstream'),
    ((b'class Wide(nn.Module)', b'class Wide(Base)'), 'Wide: differs upstream (its bases)'),
    ((b'    def pool', b'    def embed_positions(self):\n        pass\n\n    def pool'), 'upstream has it already'),
    ((b'def _pos_embed', b'def pos_embed'), 'Wide._pos_embed: is gone upstream'),
    ((b'    def pool', b'    extra = 1\n\n    def pool'), 'assignment Wide.extra: upstream defines it too'),
])
def test_what_does_not_merge_is_left_and_named(project, tmp_path, change, text):
    theirs = WIDE.replace(*change)
    assert theirs != WIDE
    tree = make_tree(tmp_path / 'other', wide=theirs)
    applied = apply(project, tree, merge=True)
    assert any(note.kind == 'left' and text in note.text for note in applied.notes), applied.notes
    assert (tree / 'timm/models/wide.py').read_bytes() == theirs


def test_comment_that_upstream_changed_in_a_replaced_method_is_no_obstacle(project, tmp_path):
    theirs = WIDE.replace(b'    def pool(self, x):\n', b'    def pool(self, x):\n        # theirs\n')
    tree = make_tree(tmp_path / 'other', wide=theirs)
    _, notes = notes_of(project, tree)
    assert notes == {'Wide.pool': 'carried'}
    assert b'# ours' in (tree / 'timm/models/wide.py').read_bytes()


def test_family_that_stands_on_one_that_is_left_is_left(project, tmp_path):
    write(project.root, 'timm/models/deep.py', OVERLAY.replace(b'Net', b'Deep').replace(
        b'from ._mixin', b'from .wide import Wide\nfrom ._mixin'))
    deep = NET.replace(b'Net', b'Deep')
    pin_wheel(project, {**UPSTREAM, 'timm/models/deep.py': deep})
    project.update_lock()
    tree = make_tree(tmp_path / 'other', deep=deep, wide=WIDE.replace(b'class Wide', b'class Wider'))
    applied = apply(project, tree, merge=True)
    assert 'left:      timm/models/deep.py: stands on timm/models/wide.py' in map(str, applied.notes)
    assert (tree / 'timm/models/deep.py').read_bytes() == deep


def test_what_upstream_changed_in_what_is_relied_on_is_named_and_woven(project, tmp_path):
    tree = make_tree(tmp_path / 'other', net=NET.replace(b'self.blocks = []', b'self.blocks = [1]'))
    _, notes = notes_of(project, tree)
    assert notes == {'Net.__init__': 'relied on'}
    assert b'EmbedStagesMixin' in (tree / 'timm/models/net.py').read_bytes()


def test_file_that_the_tree_lacks_is_left(project, tmp_path):
    tree = make_tree(tmp_path / 'other')
    (tree / 'timm/models/wide.py').unlink()
    refused(project, tree, 'wide.py: upstream has no such file')
    _, notes = notes_of(project, tree)
    assert notes == {'upstream has no such file': 'left'}


def test_rest_is_left_where_upstream_lacks_names_that_it_imports(project, tmp_path, capsys):
    """Else the training script would fail at its first import, for those too who want nothing of it."""
    write(project.root, 'timm/mim/__init__.py', b'from timm.models import EmbedStagesMixin, Net, build, net\n'
                                                b'from ..models import renamed as other\nfrom torch import nn\n')
    project.update_lock()
    tree = make_tree(tmp_path / 'other', net=NET.replace(b'self.blocks = []', b'self.blocks = [1]'))
    applied = apply(project, tree, merge=True)
    assert str(applied.notes[-1]) == (
        'left:      --only mim: needs timm 1.0: upstream lacks timm.models.renamed; the scripts stay without --mim')
    assert set(applied.written) == {
        'timm/models/net.py', 'timm/models/wide.py', 'timm/models/_mixin.py', 'timm/models/_helper.py',
        'timm/models/__init__.py', 'tests/test_embed_stages.py'}
    assert apply(project, tree, merge=True).written == []
    refused(project, tree, 'timm.models.renamed', only='mim', merge=True)
    refused(project, make_tree(tmp_path / 'equal'), 'timm.models.renamed')
    assert apply(project, make_tree(tmp_path / 'step'), only='net').notes == []


def test_command_line_names_what_differs_and_how_to_go_on(project, tmp_path, capsys):
    tree = make_tree(tmp_path / 'other', net=NET.replace(b'x = blk(x)', b'x = blk(x, 1)'))
    assert main(['apply', str(tree)], project) == 2
    assert 'Net.forward_features' in (error := capsys.readouterr().err) and '--merge' in error
    assert main(['apply', str(tree), '--merge', '--only', 'net'], project) == 0
    assert '4 files written' in capsys.readouterr().out


def test_real_overlays_make_the_first_step_and_the_whole(tmp_path):
    """On the pinned release, with scripts in place of upstream's, which no release holds."""
    project = Project()
    woven, stock = project.check(), read_package(project.wheel())
    root = tmp_path / 'upstream'
    for path, data in {**stock, **SCRIPTS, 'hfdocs/source/_toctree.yml': CONTENTS}.items():
        write(root, path, data)
    git(root, 'init', '--quiet')
    commit(root)
    assert apply(project, root, only='vision_transformer').notes == []
    git(root, 'add', '--all')
    changed = [line.split('\t') for line in git(root, 'diff', '--cached', '--numstat').splitlines()]
    assert {path for _, _, path in changed} == {
        'timm/models/_embed_stages.py', 'timm/models/__init__.py', 'timm/models/vision_transformer.py',
        'tests/test_embed_stages.py'}
    assert sum(int(added) + int(removed) for added, removed, _ in changed) <= 300
    assert apply(project, root).notes == []
    after = contents(root)
    for path, data in {**stock, **woven.changed}.items():
        assert after[path] == (stock[path] if path == 'timm/version.py' else data), path
    assert (root / 'tests/test_embed_stages.py').read_bytes() == (project.root / FAMILY_TEST_SOURCE).read_bytes()
    assert apply(project, root).written == []


def test_every_family_has_a_line_in_the_test_that_goes_upstream():
    request = PullRequest(Project().root)
    lines = (request.root / FAMILY_TEST_SOURCE).read_bytes().splitlines(keepends=True)
    assert [family for family in map(family_of, lines) if family] == sorted(request.families)
