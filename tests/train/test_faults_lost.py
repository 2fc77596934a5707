"""Fault 8: a process of a run dies, and the others do not wait for it; and what several processes do about fault 1."""
import signal
import time

import pytest
from child_runs import at_update, kill, killed_at_change, start_ranks
from run_folders import assert_equal_runs

FLAGS = (
    '--experiment run --epochs 2 --epoch-repeats 2 --lr 1e-3 --batch-size 2 --log-interval 1 --recovery-interval 2 '
    '--model-kwargs drop_path_rate=0.3 --model-ema --resume auto')
BOUND = 60  # seconds; the timeouts of torch.distributed are 10 and 30 minutes


def run(images, output, faults=None):
    runs = start_ranks(2, f'--data-dir {images} --output {output} {FLAGS}', output / 'logs', faults)
    return [run.wait() for run in runs], [run.output for run in runs]


@pytest.fixture(scope='module')
def uninterrupted(images, tmp_path_factory):
    output = tmp_path_factory.mktemp('uninterrupted')
    codes, outputs = run(images, output)
    assert codes == [0, 0], outputs
    return output / 'run'


def test_two_killed_twice(uninterrupted, images, tmp_path):
    """First one process, then the other; the survivor ends with a line."""
    start = time.monotonic()
    codes, outputs = run(images, tmp_path, {1: at_update(4, kill)})
    assert time.monotonic() - start < BOUND
    assert codes == [1, -signal.SIGKILL]
    assert 'error: another process of the run has died' in outputs[0] and 'Traceback' not in outputs[0]

    codes, outputs = run(images, tmp_path, {0: killed_at_change(12, tmp_path / 'run')})
    assert codes == [-signal.SIGKILL, 1]
    assert 'rank 1: error: another process of the run has died' in outputs[1] and 'Traceback' not in outputs[1]

    codes, outputs = run(images, tmp_path)
    assert codes == [0, 0], outputs
    assert_equal_runs(uninterrupted, tmp_path / 'run')
