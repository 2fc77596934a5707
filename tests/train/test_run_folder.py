"""A run folder belongs to one run."""
import argparse
import errno
import logging
import os
import shutil
import signal
import socket
import time
from contextlib import contextmanager
from datetime import datetime

import pytest
from child_runs import start_ranks
from run_folders import epochs, load

from timm.mim.pretrain import checkpoints, run_folder
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.run_folder import LOCK, FolderLock, claim_run_folder, lies_in
from timm.mim.pretrain.resume import find_checkpoint

FLAGS = '--epoch-repeats 4 --lr 2e-3'  # of `finished_run`


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


def options_of(**given):
    return argparse.Namespace(**{**dict(output='', experiment='', resume='', model='test_vit', mim='simmim'), **given})


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / 'output' / 'run')


@contextmanager
def locked_elsewhere(folder):
    """Another process, whose id is yielded, has the lock of a folder. It has a loader, which outlives it."""
    ready, said = os.pipe()
    process = os.fork()
    if process == 0:
        lock = FolderLock()
        lock.take(folder)
        loader = os.fork()
        if loader:
            os.write(said, str(loader).encode())
        time.sleep(60)
        os._exit(0)
    loader = int(os.read(ready, 20))
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.kill(loader, 0)  # it lives, and has no part in the lock
        try:
            with FolderLock() as lock:
                lock.take(folder)
        finally:
            os.kill(loader, signal.SIGKILL)


@pytest.mark.parametrize('method', ['', '--mim mae'])
def test_checkpoint_of_another_folder_is_refused(method, train, images, finished_run, copied_run, capsys):
    """And what the message advises works."""
    flags = f'--data-dir {images} --output {copied_run.parent} {FLAGS} --epochs 7 --resume {finished_run}/last.pth.tar'
    before = files(copied_run)
    with pytest.raises(SystemExit) as stopped:
        train(f'{flags} --experiment run {method}')
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and 'is no checkpoint of' in error and 'that does not exist yet' in error
    assert files(copied_run) == before
    if not method:
        train(f'{flags} --experiment branch')
        assert epochs(copied_run.parent / 'branch') == [6]
        assert load(copied_run.parent / 'branch' / 'last.pth.tar')['epoch'] == 6


@pytest.mark.parametrize('path', ['link/last.pth.tar', 'output/run/../run/last.pth.tar', 'file'])
def test_history_goes_on_by_whatever_path(path, train, images, copied_run, tmp_path):
    """An epoch that is worse takes neither the encoder nor the place of the best."""
    (tmp_path / 'link').symlink_to(copied_run)
    (tmp_path / 'file').symlink_to(copied_run / 'last.pth.tar')
    encoder = (copied_run / 'encoder.safetensors').read_bytes()
    best = load(copied_run / 'model_best.pth.tar')['epoch']
    where = '' if path == 'file' else f'--output {copied_run.parent} --experiment run'
    train(f'--data-dir {images} {where} --epoch-repeats 4 --lr 0.5 --epochs 7 --resume {tmp_path}/{path}')
    assert load(copied_run / 'last.pth.tar')['epoch'] == 6
    assert load(copied_run / 'model_best.pth.tar')['epoch'] == best
    assert (copied_run / 'encoder.safetensors').read_bytes() == encoder


def test_checkpoint_before_others_is_refused(train, images, copied_run, capsys):
    """Those after it would be overwritten, and --resume auto would take them for the newest."""
    before = files(copied_run)
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {copied_run.parent} --experiment run {FLAGS} --epochs 6 '
              f'--resume {copied_run}/checkpoint-2.pth.tar')
    assert stopped.value.code == 2 and "is from before 'last.pth.tar'" in capsys.readouterr().err
    assert files(copied_run) == before


def test_file_in_no_run_folder_makes_a_folder_of_its_own(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished_run / 'last.pth.tar', tmp_path / 'start.pth.tar')
    with FolderLock() as lock:
        folder = claim_run_folder(options_of(resume='start.pth.tar'), lock)
        assert folder.parent.as_posix() == 'output/pretrain' and not lies_in(tmp_path / 'start.pth.tar', folder)
    assert not (tmp_path / 'output').exists()  # nothing was written to it
    with FolderLock() as lock:
        assert claim_run_folder(options_of(resume=f'{finished_run}/last.pth.tar'), lock) == finished_run


def test_two_jobs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_folder, 'datetime', Frozen)
    with FolderLock() as first, FolderLock() as second, FolderLock() as third:
        names = [claim_run_folder(options_of(output=str(tmp_path)), lock).name for lock in (first, second, third)]
    assert names == [f'20260102-030405-test_vit-simmim{end}' for end in ('', '-2', '-3')]


@pytest.mark.parametrize('flags', ['--resume auto', ''])
def test_folder_of_a_run_that_runs(flags, train, images, tmp_path, capsys):
    """The second one is told who has it, and changes nothing; when the first one is killed it may begin."""
    (tmp_path / 'run').mkdir()
    with locked_elsewhere(tmp_path / 'run') as process:
        with pytest.raises(SystemExit) as stopped:
            train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 {flags}')
        error = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2
        assert f'is in use by another run (process {process} on {socket.gethostname()}, since 20' in error
        assert [path.name for path in (tmp_path / 'run').iterdir()] == [LOCK]
    assert not (tmp_path / 'run' / LOCK).exists()


def test_all_processes_end_where_the_first_may_not_begin(images, tmp_path):
    (tmp_path / 'run').mkdir()
    with locked_elsewhere(tmp_path / 'run'):
        runs = start_ranks(
            2, f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --batch-size 2 --resume auto',
            tmp_path / 'logs')
        assert [run.wait() for run in runs] == [2, 2]
    assert runs[0].output.count('in use by another run') == 1 and 'Traceback' not in runs[0].output + runs[1].output


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', refuse)
    with FolderLock() as lock, caplog.at_level(logging.WARNING):
        claim_run_folder(options_of(output=str(tmp_path), experiment='run'), lock)
        assert list((tmp_path / 'run').iterdir()) == []
    assert 'cannot be locked' in caplog.text and 'no other run' in caplog.text


def test_lock_is_left_to_whoever_took_its_place(tmp_path):
    """Someone removed the file, and another run made a new one."""
    with FolderLock() as lock:
        lock.take(tmp_path)
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text('another')
    assert (tmp_path / LOCK).read_text() == 'another'


def test_no_lock_is_left(finished_run):
    assert not (finished_run / LOCK).exists()


def test_every_checkpoint_is_loaded_once(train, images, copied_run, monkeypatch):
    loaded, load_metadata = [], checkpoints.load_checkpoint_metadata

    def load_and_count(path):
        loaded.append(path.name)
        return load_metadata(path)

    monkeypatch.setattr(checkpoints, 'load_checkpoint_metadata', load_and_count)
    for resume in ('auto', f'{copied_run}/last.pth.tar'):
        loaded.clear()
        train(f'--data-dir {images} --output {copied_run.parent} --experiment run {FLAGS} --epochs 6 --resume {resume}')
        assert 'last.pth.tar' in loaded and len(loaded) == len(set(loaded))


def test_run_that_began_from_another_and_was_killed_at_once(tmp_path):
    """--resume auto would begin from nothing instead."""
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'args.yaml').write_text('resume: other/last.pth.tar\n')
    with pytest.raises(UserError, match='give --resume other/last.pth.tar again'):
        find_checkpoint(options_of(resume='auto'), tmp_path / 'run')
    (tmp_path / 'run' / 'args.yaml').write_text('resume: auto\n')
    assert find_checkpoint(options_of(resume='auto'), tmp_path / 'run') is None
