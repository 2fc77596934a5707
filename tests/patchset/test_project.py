"""Build, lock and check on a small project: what is written, and that nothing is where something is wrong."""
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import pytest

from patchset import project as files
from patchset.__main__ import main
from patchset import PatchsetError
from patchset.project import Project, write_tree
from sandbox import NET, OVERLAY, STOCK, make_project, pin_wheel, snapshot, touch_later, write, write_wheel


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL', raising=False)
    return make_project(tmp_path)


def read(project, path):
    return (project.build_folder / path).read_bytes()


def refused(project, *parts, command='build'):
    """The command fails with one line that holds all parts, and writes nothing."""
    before = snapshot(project.root)
    with pytest.raises(PatchsetError) as error:
        getattr(project, command)()
    message = str(error.value)
    assert '\n' not in message
    for part in parts:
        assert part in message, message
    assert snapshot(project.root) == before
    return message


def test_build_writes_the_whole_package_and_stock_beside_it(project):
    project.build(stock=True)
    for path, data in STOCK.items():
        assert read(project, f'stock/{path}') == data
        if path not in ('timm/models/net.py', 'timm/version.py'):
            assert read(project, path) == data
    assert read(project, 'timm/mim/__init__.py') == b'NEW = 1\n'
    assert b'def forward_stages' in read(project, 'timm/models/net.py')
    assert read(project, 'timm/version.py').endswith(b"\n__version__ = '1.0+mim.1'\n")


def test_modified_files_carry_a_notice_of_change_and_others_do_not(project):
    project.build()
    for path in ('timm/models/net.py', 'timm/version.py'):
        first = read(project, path).splitlines()[0].decode()
        assert first.startswith('#') and 'modified' in first and 'timm 1.0' in first
    assert read(project, 'timm/mim/__init__.py') == b'NEW = 1\n'
    module = compile(read(project, 'timm/models/net.py'), 'net.py', 'exec')
    assert module.co_consts[0] == 'Net.', 'the docstring is still one'


def test_notice_follows_an_interpreter_line(project):
    pin_wheel(project, {**STOCK, 'timm/models/net.py': b'#!/usr/bin/env python\n' + NET})
    project.build()
    lines = read(project, 'timm/models/net.py').splitlines()
    assert lines[0] == b'#!/usr/bin/env python' and b'modified' in lines[1]


def test_second_build_touches_nothing(project):
    project.build(stock=True)
    before = snapshot(project.build_folder)
    del before['woven.json']
    project.build(stock=True)
    after = snapshot(project.build_folder)
    del after['woven.json']
    assert after == before


def test_build_removes_stale_files_and_mends_edited_ones(project):
    project.build()
    good = snapshot(project.build_folder / 'timm')
    write(project.build_folder, 'timm/gone/deeper/old.py', b'')
    write(project.build_folder, 'timm/gone/__pycache__/old.pyc', b'')
    write(project.build_folder, 'timm/models/__pycache__/net.pyc', b'')
    write(project.build_folder, 'timm/models/net.py', b'edited')
    project.build()
    assert not (project.build_folder / 'timm/gone').exists()
    assert {p: d for p, (d, _) in snapshot(project.build_folder / 'timm').items() if '__pycache__' not in p} == {
        path: data for path, (data, _) in good.items()}


def test_a_rewritten_file_never_has_the_second_of_the_one_before(project):
    """Bytecode is cached by second and size: an edit of equal length within a second must not meet it."""
    project.build()
    file = project.build_folder / 'timm/mim/__init__.py'
    before = int(file.stat().st_mtime)
    write(project.root, 'timm/mim/__init__.py', b'NEW = 2\n')
    project.build()
    assert file.read_bytes() == b'NEW = 2\n'
    assert int(file.stat().st_mtime) > before


def test_failure_while_writing_leaves_the_tree_as_it_was(project, monkeypatch):
    project.build()
    before = snapshot(project.build_folder / 'timm')
    write(project.root, 'timm/mim/__init__.py', b'NEW = 2\n')
    write(project.root, 'timm/models/net.py', OVERLAY.replace(b'return x', b'return 2'))
    real, calls = files.stage, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError('No space left on device')
        return real(*arguments)

    monkeypatch.setattr(files, 'stage', full_disk)
    with pytest.raises(OSError, match='No space left'):
        project.build()
    assert snapshot(project.build_folder / 'timm') == before
    assert not project.is_fresh()


def test_tree_that_was_left_half_replaced_is_stale(project, monkeypatch):
    """Even once the overlays are what they were."""
    project.build()
    good, stat = OVERLAY, (project.root / 'timm/models/net.py').stat()
    write(project.root, 'timm/models/net.py', OVERLAY.replace(b'return x', b'return 2'))
    with monkeypatch.context() as patch:
        patch.setattr('patchset.project.os.replace', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.build()
    write(project.root, 'timm/models/net.py', good)
    os.utime(project.root / 'timm/models/net.py', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not project.is_fresh()


def test_who_waited_for_another_process_does_not_weave_again(project, monkeypatch):
    project.build()
    touch_later(project.root / 'timm/models/net.py')

    @contextlib.contextmanager
    def another_came_first(path):
        project.write(project.weave(), project.fingerprint())
        monkeypatch.setattr(project, 'weave', lambda download: 1 / 0)
        yield

    monkeypatch.setattr('patchset.project.exclusive', another_came_first)
    assert project.refresh() == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    write(tmp_path, 'mine.txt', b'')
    write_tree({'timm/a.py': b''}, tmp_path, 'timm')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mine.txt', 'timm']


# the lock

def test_lock_says_what_the_overlays_do_and_stand_on(project):
    lock = json.loads(project.lock_file.read_text())
    assert lock['new_files'] == ['timm/mim/__init__.py']
    net = lock['overlays']['timm/models/net.py']
    assert net['new'] == ['function Net.added']
    assert net['split']['Net.forward_features']['into'] == ['forward_stages']
    assert sorted(net['watch']) == ['Net.__init__', 'Net._pos_embed']
    assert 'bases' not in net
    assert list(lock['overlays']['timm/version.py']['replaced']) == ['__version__']


def test_lock_is_stable_and_sorted(project):
    text = project.lock_file.read_text()
    assert project.update_lock() == []
    assert project.lock_file.read_text() == text
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + '\n'


def upstream_with(project, old, new, path='timm/models/net.py'):
    assert old in STOCK[path]
    pin_wheel(project, {**STOCK, path: STOCK[path].replace(old, new)})


@pytest.mark.parametrize('old, new, parts', [
    (b'x = blk(x)', b'x = blk(x, 1)', ['Net.forward_features', 'upstream differs from the lock', 'split']),
    (b'self.blocks = []', b'self.blocks = ()', ['Net.__init__', 'upstream differs from the lock', 'relied on']),
    (b'def _pos_embed(self, x)', b'def _pos_embed(self, x, y=1)', ['Net._pos_embed', 'upstream differs from the lock']),
    (b'def pool', b'def added', ['Net.added', 'is a new function in the lock', 'upstream defines it too']),
    (b'def _pos_embed', b'def pos_embed', ['Net._pos_embed', 'the lock lists this relied on', 'gone']),
])
def test_upstream_that_differs_from_the_lock_is_refused_by_name(project, old, new, parts):
    upstream_with(project, old, new)
    for command in ('build', 'check'):
        refused(project, 'timm/models/net.py', "'python -m patchset lock'", *parts, command=command)


@pytest.mark.parametrize('old, new', [
    (b'def pool(self, x):\n        return x', b'def pool(self, x):\n        return 2'),
    (b'x = self._pos_embed(x)\n', b'x = self._pos_embed(x)\n\n\n'),
    (b'"""Net."""', b'"""Another."""'),
    (b'\n', b'\r\n'),
])
def test_upstream_may_change_elsewhere_and_in_blank_lines(project, old, new):
    upstream_with(project, old, new)
    project.build()


def test_changed_bases_upstream(project):
    write(project.root, 'timm/models/net.py', OVERLAY.replace(b'(nn.Module)', b'(nn.Other, nn.Module)'))
    project.update_lock()
    upstream_with(project, b'(nn.Module)', b'(nn.Sequential)')
    refused(project, 'Net: upstream differs from the lock', 'bases')


def test_new_statement_in_a_moved_part_is_left_over_or_differs(project):
    upstream_with(project, b'x = self.patch_embed(x)\n', b'x = self.prepare(x)\n        x = self.patch_embed(x)\n')
    refused(project, 'Net.forward_features', "'x = self.prepare(x)'", 'left over')


@pytest.mark.parametrize('path, data, parts', [
    ('timm/models/net.py', OVERLAY.replace(b'def added', b'def adedd'), ['Net.added', 'gone']),
    ('timm/models/net.py', OVERLAY + b'\n    def more(self):\n        pass\n',
     ['Net.more', 'does not list this new function']),
    ('timm/models/net.py', OVERLAY.replace(b'class Net', b'class Typo:\n    x = 1\n\n\nclass Net'),
     ['Typo', 'does not list this new class']),
    ('timm/models/net.py', OVERLAY + b'\n    def pool(self, x):\n        pass\n',
     ['Net.pool', 'does not list this replaced']),
    ('timm/models/net.py', OVERLAY + b'\n    del pool\n', ['Net.pool', 'does not list this removed']),
    ('timm/models/net.py', OVERLAY.replace(b'return x\n', b'return self.pool(x)\n'),
     ['Net.pool', 'relied on']),
    ('timm/models/net.py', OVERLAY.replace(b'forward_stages', b'stages'),
     ['Net.forward_features', 'split in another way']),
    ('timm/more.py', b'', ['timm/more.py', 'does not list this new file']),
    ('timm/__init__.py', b'# Overlay: x\n', ['timm/__init__.py', 'does not list this overlay']),
    ('timm/py.typed', b'# Overlay: x\n', ['timm/py.typed', 'only Python files']),
    ('timm/mim/__init__.py', b'# Overlay: x\n', ['timm/mim/__init__.py', 'upstream has no such file']),
    ('timm/version.py', b"__version__ = '1.0+mim.1'\n", ['timm/version.py', 'exists upstream']),
    ('timm/models/net.py', b'# Overlay: x\nclass Net(:\n', ['timm/models/net.py', 'does not parse']),
])
def test_overlay_that_the_lock_does_not_know(project, path, data, parts):
    project.build()
    write(project.root, path, data)
    refused(project, *parts)


def test_new_file_whose_path_upstream_has_now(project):
    pin_wheel(project, {**STOCK, 'timm/mim/__init__.py': b'theirs'})
    refused(project, 'timm/mim/__init__.py', 'exists upstream')


def test_overlay_whose_file_is_gone_upstream(project):
    pin_wheel(project, {path: data for path, data in STOCK.items() if path != 'timm/models/net.py'})
    refused(project, 'timm/models/net.py', 'upstream has no such file')


def test_check_writes_nothing_and_lock_prints_news(project, capsys):
    project.build()
    before = snapshot(project.root)
    assert main(['check'], project) == 0
    assert snapshot(project.root) == before
    write(project.root, 'timm/models/net.py', OVERLAY.replace(b'def added', b'def adedd'))
    capsys.readouterr()
    assert main(['lock'], project) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        'timm/models/net.py: Net.added: no longer new function',
        'NEW timm/models/net.py: Net.adedd: new function',
    ]
    assert main(['build'], project) == 0


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"upstream": {"name": "timm"}}', '{"upstream": {"wheel": 1}}'])
def test_lock_that_is_none(project, text):
    project.lock_file.write_text(text)
    refused(project, str(project.lock_file), 'is not a lock')


def test_no_lock(project):
    project.lock_file.unlink()
    refused(project, 'is missing')


# the wheel

def test_wheel_of_another_hash_is_refused(project, tmp_path, monkeypatch):
    other = tmp_path / 'other.whl'
    digest = write_wheel(other, {'timm/__init__.py': b''})
    monkeypatch.setenv('TIMM_UPSTREAM_WHEEL', str(other))
    refused(project, str(other), digest, project.pin['sha256'])


def test_wheel_named_by_the_environment(project, tmp_path, monkeypatch):
    kept = project.build_folder / 'upstream' / project.pin['wheel']
    moved = kept.rename(tmp_path / 'mine.whl')
    kept.parent.rmdir()
    monkeypatch.setenv('TIMM_UPSTREAM_WHEEL', str(moved))
    go_offline(monkeypatch, tmp_path)
    project.build()
    # a stale tree can be woven again once the variable is gone
    monkeypatch.delenv('TIMM_UPSTREAM_WHEEL')
    touch_later(project.root / 'timm/models/net.py')
    project.refresh()
    assert project.is_fresh() and kept.read_bytes() == moved.read_bytes()


def test_wheel_named_by_the_environment_that_is_not_there(project, monkeypatch):
    monkeypatch.setenv('TIMM_UPSTREAM_WHEEL', '/nowhere.whl')
    refused(project, 'TIMM_UPSTREAM_WHEEL=/nowhere.whl', 'no such file')


def go_offline(monkeypatch, folder):
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))


def test_no_network_and_no_wheel(project, tmp_path, monkeypatch):
    (project.build_folder / 'upstream' / project.pin['wheel']).unlink()
    go_offline(monkeypatch, tmp_path / 'nothing')
    message = refused(project, 'timm==1.0', 'pip could not download', 'TIMM_UPSTREAM_WHEEL=FILE')
    assert 'No matching distribution' in message


def test_download_goes_by_pips_settings_and_replaces_a_damaged_wheel(project, tmp_path, monkeypatch):
    kept = project.build_folder / 'upstream' / project.pin['wheel']
    links = tmp_path / 'links'
    links.mkdir()
    kept.rename(links / kept.name)
    go_offline(monkeypatch, links)
    kept.write_bytes(b'damaged')
    project.build()
    assert kept.read_bytes() == (links / kept.name).read_bytes()


def test_download_of_another_hash_is_not_kept(project, tmp_path, monkeypatch):
    kept = project.build_folder / 'upstream' / project.pin['wheel']
    kept.unlink()
    (tmp_path / 'links').mkdir()
    digest = write_wheel(tmp_path / 'links' / kept.name, {**STOCK, 'timm/__init__.py': b'other'})
    go_offline(monkeypatch, tmp_path / 'links')
    refused(project, kept.name, digest, project.pin['sha256'])


def test_check_does_not_keep_what_it_downloads(project, tmp_path, monkeypatch):
    kept = project.build_folder / 'upstream' / project.pin['wheel']
    links = tmp_path / 'links'
    links.mkdir()
    kept.rename(links / kept.name)
    go_offline(monkeypatch, links)
    before = snapshot(project.root)
    project.check()
    assert snapshot(project.root) == before


def test_command_line_prints_one_line_and_exits_with_2(project, capsys):
    write(project.root, 'timm/models/net.py', OVERLAY.replace(b'class Net', b'class Met'))
    for command in ('build', 'check', 'lock', 'diff'):
        assert main([command], project) == 2
        captured = capsys.readouterr()
        assert captured.out == '' and captured.err.count('\n') == 1
        assert captured.err.startswith('patchset: timm/models/net.py: Met: ')
    with pytest.raises(SystemExit) as error:
        main(['patch'], project)
    assert error.value.code == 2


def test_folder_that_cannot_be_written(project, capsys):
    file = project.build_folder / 'timm'
    file.write_bytes(b'a file where the package should go')
    assert main(['build'], project) == 2
    assert capsys.readouterr().err.startswith('patchset: ')


def test_diff_is_what_git_applies(project, tmp_path, capfdbinary):
    project.build(stock=True)
    # upstream without a final newline, with Windows line ends
    upstream_with(project, b'        return x\n', b'        return x\n# end')
    pin_wheel(project, {**STOCK, 'timm/models/net.py': NET.replace(b'\n', b'\r\n')[:-2]})
    project.build(stock=True)
    tree = project.weave()
    assert main(['diff'], project) == 0
    captured = capfdbinary.readouterr()
    command = ['git', 'apply', '--numstat']
    counts = subprocess.run(command, input=captured.out, stdout=subprocess.PIPE, check=True).stdout
    added, removed = (sum(int(line.split()[i]) for line in counts.splitlines()) for i in (0, 1))
    assert captured.err.decode() == f'3 files (1 new), {added} lines added, {removed} removed\n'
    assert b'NOTICE' not in captured.out
    stock = tmp_path / 'build' / 'stock'
    subprocess.run(['git', 'init', '--quiet', stock], check=True)
    subprocess.run(['git', 'apply', '--whitespace=nowarn'], input=captured.out, cwd=stock, check=True)
    for path, data in tree.woven.items():
        assert (stock / path).read_bytes() == data


# several processes, and staleness

def test_refresh_weaves_only_what_is_stale(project, monkeypatch):
    project.build()
    woven = []
    monkeypatch.setattr(Project, 'weave', lambda self, download=True, real=Project.weave: (
        woven.append(download), real(self, download))[1])
    assert project.refresh() == [] and woven == []
    for path in ('timm/models/net.py', 'upstream.lock.json'):
        touch_later(project.root / path)
        project.refresh()
        project.refresh()
    assert woven == [False, False]
    write(project.root, 'timm/mim/more.py', b'')
    assert [d.where for d in project.refresh()] == ['timm/mim/more.py']
    assert (project.build_folder / 'timm/mim/more.py').exists()
    (project.root / 'timm/mim/more.py').unlink()
    assert project.refresh() == []
    assert not (project.build_folder / 'timm/mim/more.py').exists()
    assert len(woven) == 4


def test_refresh_weaves_what_was_removed(project):
    project.build()
    shutil.rmtree(project.build_folder / 'timm')
    project.refresh()
    assert (project.build_folder / 'timm/models/net.py').exists()


def build_many(root, barrier, results):
    project, found = Project(root), set()
    barrier.wait()
    try:
        for _ in range(5):
            project.build(stock=True)
            project.state_file.unlink(missing_ok=True)
            project.refresh()
            found.add((project.build_folder / 'timm/models/net.py').read_bytes())
        results.put(found)
    except BaseException as error:
        results.put(repr(error))


def test_concurrent_builds(project):
    context = multiprocessing.get_context('spawn')
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=build_many, args=(project.root, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == 4 * [{read(project, 'timm/models/net.py')}]
    assert not list(project.build_folder.glob('.writing-*'))


def test_standard_library_is_enough(tmp_path):
    """No torch, nor anything else from site-packages."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import patchset.__main__; assert 'torch' not in sys.modules"
    root = str(Project().root)
    subprocess.run([sys.executable, '-I', '-S', '-c', code, root], check=True, cwd=tmp_path)
