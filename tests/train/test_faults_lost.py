"""Fault 8: a process or a machine of a run is lost, and the others do not wait for it; and several processes that are
stopped or killed go on as if nothing had happened (faults 1 and 2)."""
import signal
import subprocess
import time

import pytest
from agents import start_agents
from child_runs import at_update, kill, kill_group, killed_at_change, start_ranks, terminate
from run_folders import assert_equal_runs
from slurm import SCRIPT, Slurm

FLAGS = (
    '--experiment run --epoch-repeats 2 --lr 1e-3 --log-interval 1 --recovery-interval 2 '
    '--model-kwargs drop_path_rate=0.3 --model-ema')
TWO_RANKS = f'{FLAGS} --epochs 2 --batch-size 2'  # twice 7 steps
FOUR_RANKS = f'{FLAGS} --epochs 1 --batch-size 1 --resume auto'
BOUND = 100  # seconds, for the whole try; the timeouts of torch.distributed are 10 and 30 minutes


def run_ranks(world_size, flags, output):
    runs = start_ranks(world_size, f'{flags} --output {output}', output / 'logs')
    assert [run.wait() for run in runs] == [0] * world_size, [run.output for run in runs]
    return output / 'run'


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path / 'slurm', num_tasks=2)


def test_slurm_until_done(slurm, images, tmp_path):
    """Slurm stops the job, then one process dies and then the other. Each try is the same script with the same flags.
    """
    flags = f'{TWO_RANKS} --data-dir {images}'
    expected = run_ranks(2, flags, tmp_path / 'uninterrupted')
    flags += f' --output {tmp_path}'

    stopped = slurm.start(flags, {rank: at_update(2, terminate) for rank in range(2)})
    assert stopped.codes == [75, 75] and stopped.requeued, stopped.output

    start = time.monotonic()
    lost = slurm.start(flags, {1: at_update(4, kill)})
    assert time.monotonic() - start < BOUND
    assert lost.codes == [1, -signal.SIGKILL] and lost.requeued
    output = lost.tasks[0].output
    assert 'error: another process of the run has died' in output and 'Traceback' not in output

    lost = slurm.start(flags, {0: killed_at_change(12, tmp_path / 'run')})
    assert lost.codes == [-signal.SIGKILL, 1] and lost.requeued
    output = lost.tasks[1].output
    assert 'rank 1: error: another process of the run has died' in output and 'Traceback' not in output

    done = slurm.start(flags)
    assert done.codes == [0, 0] and not done.requeued, [task.output for task in done.tasks]
    assert_equal_runs(expected, tmp_path / 'run')


@pytest.mark.parametrize('code, restarts, state, requeued', [
    (0, 0, 'RUNNING', False),
    (75, 0, 'RUNNING', True),
    (75, 99, 'RUNNING', True),
    (75, 0, 'CANCELLED', False),  # the user called scancel
    (137, 19, 'RUNNING', True),  # killed
    (134, 20, 'RUNNING', False),  # as often as MAX_RESTARTS
    (1, 0, 'RUNNING', False),
    (2, 0, 'RUNNING', False),
])
def test_slurm_requeues(code, restarts, state, requeued, slurm):
    slurm.restarts = restarts
    outcome = slurm.start("--data-dir 'my images'", code=code, state=state)
    assert (outcome.code, outcome.requeued) == (code, requeued)
    assert ('goes back into the queue' in outcome.output) == requeued
    program = outcome.words[outcome.words.index('python'):]
    assert program == [
        'python', '-m', 'timm.mim.pretrain', '--experiment', f'slurm-{slurm.job}', '--data-dir', 'my images',
        '--resume', 'auto']


def test_slurm_script_is_valid():
    subprocess.run(['bash', '-n', str(SCRIPT)], check=True)


def test_machine_is_lost(images, tmp_path):
    """torchrun on two machines with two ranks each. One agent dies with its ranks, and the other one ends by itself.
    The same two commands then continue the run."""
    flags = f'{FOUR_RANKS} --data-dir {images}'
    expected = run_ranks(4, flags, tmp_path / 'uninterrupted')
    flags += f' --output {tmp_path}'

    start = time.monotonic()
    agents = start_agents(flags, tmp_path / 'first', {3: at_update(4, kill_group)})
    codes = [agent.wait() for agent in agents]
    assert time.monotonic() - start < BOUND
    killed = codes.index(-signal.SIGKILL)
    assert codes[1 - killed] == 1, codes
    assert 'error: another process of the run has died' in agents[1 - killed].output
    assert list((tmp_path / 'run').glob('recovery-*'))

    agents = start_agents(flags, tmp_path / 'second')
    assert [agent.wait() for agent in agents] == [0, 0], [agent.output for agent in agents]
    assert_equal_runs(expected, tmp_path / 'run')
