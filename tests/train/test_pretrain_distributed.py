"""One process and several train the same."""
import subprocess
import sys

import pytest
import torch
from processes import run_processes
from tiny_runs import SCRIPT, environment, tiny


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


def test_mistake_under_torchrun(images, tmp_path):
    command = [sys.executable, str(SCRIPT), *tiny('--mask-ratio 2').split()]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, env=environment(RANK=str(rank), WORLD_SIZE='2'))
        for rank in range(2)
    ]
    assert [output.returncode for output in outputs] == [2, 2]
    assert outputs[0].stderr.count('\n') == 1 and outputs[1].stderr == ''
