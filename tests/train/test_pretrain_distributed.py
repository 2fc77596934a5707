"""One process and several train the same."""
import pytest
import torch
from child_runs import ChildRun
from processes import run_processes


# With plain SGD the weights differ as the gradients do, by rounding: their sums have another order.
FLAGS = '--opt momentum --momentum 0 --lr 0.5 --clip-grad 1 --epochs 2 --experiment run --val-interval 2'


@pytest.fixture(scope='module')
def single(train, images, tmp_path_factory):
    output = tmp_path_factory.mktemp('single')
    train(f'--data-dir {images} --output {output} {FLAGS} --batch-size 8')
    return output / 'run'


def weights_of(folder):
    checkpoint = torch.load(folder / 'last.pth.tar', weights_only=False)
    return {**checkpoint['state_dict'], **checkpoint['task_state']['method']}


def assert_same_training(folder, single, images):
    expected, weights = weights_of(single), weights_of(folder)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=2e-5, rtol=0, msg=name)
    lines = [(f / 'summary.csv').read_text().splitlines()[1].split(',') for f in (folder, single)]
    assert [float(v) for v in lines[0]] == pytest.approx([float(v) for v in lines[1]], abs=2e-5)


def test_two_processes_train_as_one(single, images, tmp_path):
    outputs = run_processes(2, f'--data-dir {images} --output {tmp_path} {FLAGS} --batch-size 4')
    assert_same_training(tmp_path / 'run', single, images)
    assert 'step 2/2' in outputs[0] and 'step' not in outputs[1]  # plain lines, from one process


def test_accumulated_batches_train_as_one(train, single, images, tmp_path):
    train(f'--data-dir {images} --output {tmp_path} {FLAGS} --batch-size 2 --grad-accum-steps 4')
    assert_same_training(tmp_path / 'run', single, images)


def test_other_masks_train_otherwise(train, single, images, tmp_path):
    """The tolerance above would notice."""
    train(f'--data-dir {images} --output {tmp_path} {FLAGS} --batch-size 8 --mask-ratio 0.5')
    expected, weights = weights_of(single), weights_of(tmp_path / 'run')
    assert max((weights[name] - expected[name]).abs().max() for name in weights) > 1e-3


@pytest.mark.parametrize('rank, size', [('RANK', 'WORLD_SIZE'), ('SLURM_PROCID', 'SLURM_NTASKS')])
def test_mistake_is_told_once(rank, size, tmp_path):
    """Under torchrun and under Slurm."""
    runs = [
        ChildRun('--mask-ratio 2', tmp_path / f'{number}.log', **{rank: str(number), size: '2'}) for number in range(2)]
    assert [run.wait() for run in runs] == [2, 2]
    assert '--mask-ratio 2 must' in runs[0].output and runs[0].output.count('\n') == 1 and runs[1].output == ''
