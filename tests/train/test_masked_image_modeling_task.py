"""The task by itself."""
import pytest
import torch

import timm
from timm.mim import create_mim
from timm.task import MaskedImageModelingTask


def create_task(**options):
    torch.manual_seed(options.pop('seed', 0))
    return MaskedImageModelingTask(create_mim('simmim', 'test_vit', img_size=64, mask_unit=16, **options))


def test_loss_is_that_of_the_method():
    task = create_task()
    images = torch.randn(2, 3, 64, 64)
    noise = torch.rand(task.get_method().noise_shape(2))
    result = task(images, torch.zeros(2), noise=noise)  # labels, as loaders give them, change nothing
    output = task.get_method()(images, noise=noise)
    assert torch.equal(result['loss'], output.loss)
    assert torch.equal(result['output'], output.prediction)
    assert torch.equal(result['mask'], output.mask)
    again = task(images, mask=result['mask'])
    assert torch.equal(again['loss'], result['loss'])


def test_checkpoint_is_a_plain_model_and_comes_back():
    task, other = create_task(), create_task(seed=1)
    state = task.get_checkpoint_state()
    assert state['state_dict'].keys() == timm.create_model('test_vit', num_classes=0).state_dict().keys()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    expected = task.get_method().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.get_method().state_dict().items())
    assert len(state['state_dict']) + len(state['task_state']['method']) == len(expected)


def test_checkpoint_of_a_moving_average():
    task = create_task()
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(1)
    state = task.get_checkpoint_state(ema=True)
    assert state['state_dict_ema'].keys() == task.get_checkpoint_state()['state_dict'].keys()
    assert set(state['task_state_ema']) == {'method'}
    other = create_task(seed=1)
    other.setup_ema()
    other.load_checkpoint_state(state['state_dict_ema'], state['task_state_ema'], ema=True)
    assert torch.equal(other.get_method(ema=True).mask_token, task.get_method(ema=True).mask_token)
    assert not torch.equal(other.get_method(ema=True).mask_token, other.get_method().mask_token)


@pytest.mark.parametrize('state', [None, {}, {'method': {}}, {'method': {'nonsense': torch.zeros(1)}}])
def test_incomplete_task_state_is_refused(state):
    task = create_task()
    with pytest.raises(RuntimeError, match='without the mask token|does not fit'):
        task.load_task_state(state)


def test_compiled_task_trains_and_keeps_its_names():
    task, plain = create_task(), create_task()
    keys = task.get_checkpoint_state()['state_dict'].keys()
    task.compile(backend='eager')
    images = torch.randn(2, 3, 64, 64)
    noise = torch.rand(plain.get_method().noise_shape(2))
    assert torch.equal(task(images, noise=noise)['loss'], plain(images, noise=noise)['loss'])
    assert task.get_checkpoint_state()['state_dict'].keys() == keys


def test_every_trained_parameter_gets_a_gradient():
    """As DistributedDataParallel expects."""
    task = create_task()
    task(torch.randn(2, 3, 64, 64))['loss'].backward()
    assert not [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]


def test_there_is_no_evaluator_of_labels():
    with pytest.raises(NotImplementedError, match='no labels'):
        create_task().create_evaluator()
