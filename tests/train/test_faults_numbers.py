"""Fault 5: a loss that is not finite ends the run before the step, on all processes; nothing of it is saved."""
import pytest
import torch
from child_runs import at_update, make_gradients_nan, make_nan, make_spike, run_child, start_ranks
from run_folders import load

FLAGS = '--experiment run --epochs 2 --epoch-repeats 2 --lr 1e-3 --log-interval 1 --recovery-interval 1'


def assert_saved_is_finite(folder, update):
    """And that the last checkpoint is that of an update."""
    newest = 0
    for path in folder.glob('*.pth.tar'):
        checkpoint = load(path)
        newest = max(newest, checkpoint['run']['update'])
        weights = (*checkpoint['state_dict'].values(), *checkpoint['task_state']['method'].values())
        assert all(weight.isfinite().all() for weight in weights)
        states = checkpoint['optimizer']['state'].values()
        assert all(torch.as_tensor(value).isfinite().all() for state in states for value in state.values())
    assert newest == update


# A fused optimizer skips the step by itself, and the processes agree a step later.
@pytest.mark.parametrize('optimizer', ['--opt adamw', '--opt momentum', '--opt adamw --opt-kwargs fused=False'])
def test_nan_of_one_process(optimizer, images, tmp_path):
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --batch-size 2 {optimizer}'
    runs = start_ranks(2, flags, tmp_path / 'logs', {1: at_update(4, make_nan)})
    assert [run.wait() for run in runs] == [1, 1]
    errors = [line for line in runs[0].output.splitlines() if 'error:' in line]
    assert len(errors) == 1 and 'Traceback' not in runs[0].output
    assert 'the loss is not finite in step 4, with a learning rate of 0.000' in errors[0] and 'Lower --lr' in errors[0]
    assert_saved_is_finite(tmp_path / 'run', 3)


def test_gradients_of_a_finite_loss(images, tmp_path):
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS}'
    assert run_child(flags, tmp_path / 'log', at_update(4, make_gradients_nan)) == 1
    assert 'error: the weights are not finite after step 4' in (tmp_path / 'log').read_text()
    assert_saved_is_finite(tmp_path / 'run', 3)


@pytest.mark.parametrize('optimizer', ['', '--opt-kwargs fused=False'])
def test_spike_of_a_finite_loss(optimizer, images, tmp_path):
    """The weights stay finite, and would stay the same for ever: steps are divided by an infinite moment."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --clip-grad 0 {optimizer}'
    assert run_child(flags, tmp_path / 'log', at_update(4, make_spike)) == 1
    error = next(line for line in (tmp_path / 'log').read_text().splitlines() if 'error:' in line)
    assert 'the state of the optimizer is not finite after step 4' in error
    assert 'Limit gradients with --clip-grad, lower --lr' in error
    assert_saved_is_finite(tmp_path / 'run', 3)


def test_overflow_that_the_scaler_skips(images, tmp_path):
    """In float16 gradients overflow until the scale is found: that is no fault."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --amp --amp-dtype float16'
    assert run_child(flags, tmp_path / 'log', at_update(4, make_gradients_nan)) == 0, (tmp_path / 'log').read_text()
    assert_saved_is_finite(tmp_path / 'run', 14)
