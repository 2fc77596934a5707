"""Fault 2: a run that is told to stop saves what it has, and says so by its exit code."""
import pytest
from child_runs import at_update, run_child, start_ranks, terminate, terminate_group
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
    assert f'stopped and saved after step {steps} of 14: --resume auto goes on' in (tmp_path / 'log').read_text()
    assert saved(tmp_path) == steps


def test_one_of_two_is_told_to_stop(images, tmp_path):
    """Both stop after the same step, and go on as if nothing had been."""
    def run(name, fault=None):
        flags = f'--data-dir {images} --output {tmp_path / name} {FLAGS} --batch-size 2'
        runs = start_ranks(2, flags, tmp_path / 'logs', {1: fault} if fault else None)
        return [run.wait() for run in runs]
    assert run('stopped', at_update(2, terminate)) == [STOPPED, STOPPED]
    assert saved(tmp_path / 'stopped') == 3
    assert run('stopped') == [0, 0]
    assert run('uninterrupted') == [0, 0]
    assert_equal_runs(tmp_path / 'uninterrupted' / 'run', tmp_path / 'stopped' / 'run')
