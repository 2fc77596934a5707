"""Fault 2: a run that is told to stop saves what it has, and says so by its exit code."""
import logging
import os
import shlex
import signal
from functools import partial
from pathlib import Path

import pytest
from child_runs import at_baselines, at_update, run_child, start_ranks, terminate, terminate_group
from run_folders import assert_equal_runs, load

FLAGS = '--experiment run --epochs 2 --epoch-repeats 2 --lr 1e-3 --log-interval 1 --resume auto'  # twice 7 steps
STOPPED = 75


def saved(folder):
    paths = sorted((folder / 'run').glob('recovery-*.pth.tar'))
    assert len(paths) == 1
    return load(paths[0])['run']['update']


@pytest.mark.parametrize('flags, act, steps', [
    ('--opt momentum', terminate, 2),
    ('', terminate, 3),  # with a fused optimizer the processes agree a step later
    ('--workers 1 --batch-size 1 --grad-accum-steps 4', terminate_group, 2),  # most of two steps is still to be loaded
])
def test_stopped(flags, act, steps, images, tmp_path):
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} {flags}'
    assert run_child(flags, tmp_path / 'log', at_update(2, act)) == STOPPED
    assert saved(tmp_path) == steps
    log = (tmp_path / 'log').read_text()
    said = [line for line in log.splitlines() if line.startswith('train.py:')]
    assert said == [
        'train.py: SIGTERM: stopping after this step; again to stop now',
        f'train.py: stopped, saved after step {steps} of 14; this command goes on:',
    ]
    assert 'error' not in log.lower() and 'Traceback' not in log
    assert 'error' not in (tmp_path / 'run' / 'train.log').read_text().lower()


def send(number, loss=None):
    os.kill(os.getpid(), number)


def test_last_line_goes_on(images, train, tmp_path, monkeypatch):
    """A run without a name, stopped as its terminal closes, and a folder that a shell has to be told in quotes."""
    monkeypatch.chdir(tmp_path)
    flags = FLAGS.replace('--experiment run', '').replace('--resume auto', '')
    flags = f"--data-dir {images} --output 'my runs' {flags}"
    assert run_child(flags, tmp_path / 'log', at_update(2, partial(send, signal.SIGHUP))) == STOPPED
    folder, = (tmp_path / 'my runs').iterdir()
    line = (tmp_path / 'log').read_text().splitlines()[-1]
    assert line.endswith(f"--output 'my runs' --epochs 2 --epoch-repeats 2 --lr 1e-3 --log-interval 1 --experiment "
                         f'{folder.name} --resume auto')
    words = shlex.split(line)
    assert words[1] == 'train.py'
    train(shlex.join(words[2:]), tiny=False)
    train(f"{flags} --output whole --experiment {folder.name}")
    # relative, as the summaries of the runs name them
    assert_equal_runs(Path('whole') / folder.name, folder.relative_to(tmp_path))


def test_stopped_before_the_first_step(images, tmp_path):
    """While the fills are measured that know nothing: nothing is saved, and the same command begins again."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --epochs 1'
    assert run_child(flags, tmp_path / 'log', at_baselines(partial(send, signal.SIGINT))) == STOPPED
    assert 'stopped, before the first step; this command goes on:' in (tmp_path / 'log').read_text()
    assert not list((tmp_path / 'run').glob('*.pth.tar'))
    assert run_child(flags, tmp_path / 'log') == 0


@pytest.mark.parametrize('epoch, code', [(0, STOPPED), (1, None)])
def test_stopped_in_an_evaluation(epoch, code, images, train, tmp_path, monkeypatch, capsys, caplog):
    """After it the run is saved, and stops where it is; after the last one it is done."""
    from timm.mim.pretrain.run_loop import RunLoop
    evaluate = RunLoop.evaluate

    def evaluate_and_stop(self, number):
        evaluate(self, number)
        if number == epoch:
            send(signal.SIGTERM)
    monkeypatch.setattr(RunLoop, 'evaluate', evaluate_and_stop)
    flags = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 2 --lr 1e-3'
    with caplog.at_level(logging.INFO):
        try:
            train(flags)
            stopped = None
        except SystemExit as e:
            stopped = e.code
    assert stopped == code
    assert load(tmp_path / 'run' / 'last.pth.tar')['run']['update'] == 3 * (epoch + 1)
    assert not list((tmp_path / 'run').glob('recovery-*'))
    assert (tmp_path / 'run' / 'summary.json').exists() == (code is None)
    if code:
        assert 'stopped, saved after step 3 of 6; this command goes on:' in capsys.readouterr().err


def test_interrupted_before_training(train, images, monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr('timm.mim.pretrain.run_loop.open_data', interrupt)
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --experiment run')
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'train.py: interrupted, nothing was written.'


def test_one_of_two_is_told_to_stop(images, tmp_path):
    """Both stop after the same step, and go on as if nothing had been."""
    def run(name, fault=None):
        flags = f'--data-dir {images} --output {tmp_path / name} {FLAGS} --batch-size 2'
        runs = start_ranks(2, flags, tmp_path / 'logs', {1: fault} if fault else None)
        return [run.wait() for run in runs]
    assert run('stopped', at_update(2, terminate)) == [STOPPED, STOPPED]
    assert saved(tmp_path / 'stopped') == 3
    logs = [(tmp_path / 'logs' / f'rank{rank}.log').read_text() for rank in range(2)]
    assert [log.count('this command goes on:') for log in logs] == [1, 0]
    assert run('stopped') == [0, 0]
    assert run('uninterrupted') == [0, 0]
    assert_equal_runs(tmp_path / 'uninterrupted' / 'run', tmp_path / 'stopped' / 'run')
