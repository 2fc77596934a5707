"""Fault 9: a run goes on as the run that it was, or says what is different."""
import shutil

import pytest
import torch
from child_runs import at_update, start_ranks, terminate
from run_folders import epochs, load, metrics

SGD = '--opt momentum --momentum 0 --lr 0.5 --clip-grad 1 --epochs 2 --log-interval 1 --experiment run'


@pytest.fixture(scope='module')
def uninterrupted(train, images, tmp_path_factory):
    output = tmp_path_factory.mktemp('uninterrupted')
    train(f'--data-dir {images} --output {output} {SGD} --recovery-interval 2')
    return output / 'run'


@pytest.fixture(scope='module')
def within_epoch(train, images, tmp_path_factory):
    """A run that ended after step 5 of 6."""
    output = tmp_path_factory.mktemp('within')
    runs = start_ranks(
        2, f'--data-dir {images} --output {output} {SGD} --batch-size 2', output / 'logs', {0: at_update(5, terminate)})
    assert [run.wait() for run in runs] == [75, 75]
    return output / 'run'


@pytest.fixture
def resume(train, images, tmp_path):
    """Goes on with a copy of a run."""
    def resume(folder, flags):
        shutil.copytree(folder, tmp_path / 'run')
        train(f'--data-dir {images} --output {tmp_path} {flags} --resume auto')
        return tmp_path / 'run'
    return resume


def test_other_number_of_processes(within_epoch, uninterrupted, resume):
    """Two processes and then one, with the same batch over all of them, train as one did."""
    assert load(next(within_epoch.glob('recovery-*')))['run']['update'] == 5
    expected, folder = load(uninterrupted / 'last.pth.tar'), resume(within_epoch, SGD)
    found = load(folder / 'last.pth.tar')
    for part in ('state_dict', 'task_state'):
        values = expected[part] if part == 'state_dict' else expected[part]['method']
        for name, value in values.items():
            other = found[part][name] if part == 'state_dict' else found[part]['method'][name]
            torch.testing.assert_close(other, value, atol=2e-5, rtol=0, msg=name)  # as in test_pretrain_distributed
    assert len(metrics(folder)) == len(metrics(uninterrupted))
    assert epochs(folder) == [0, 1]


@pytest.mark.parametrize('batch', [2, 5])  # 15 images: 7 updates, and 3 with others in them
def test_other_batch_within_an_epoch(batch, within_epoch, resume, capsys):
    with pytest.raises(SystemExit) as stopped:
        resume(within_epoch, f'{SGD} --batch-size {batch}')
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f'of 3 updates with 4 images each, and an epoch now has {15 // batch} with {batch}:' in error


def test_other_batch_at_the_end_of_an_epoch(train, images, resume, tmp_path_factory):
    output = tmp_path_factory.mktemp('epoch')
    train(f'--data-dir {images} --output {output} {SGD} --stop-epoch 1')
    folder = resume(output / 'run', f'{SGD} --batch-size 2')
    assert epochs(folder) == [0, 1]
    reports = [line for line in metrics(folder) if 'loss' in line]
    assert [line['epoch'] for line in reports] == [0] * 3 + [1] * 7
    assert [line['update'] for line in reports] == [1, 2, 3, *range(8, 15)]  # by the present count of an epoch


@pytest.mark.parametrize('change, message', [
    ('--mim mae --mim-kwargs decoder_depth=1 decoder_dim=32 decoder_heads=2', 'mim simmim, not mae'),
    ('--model test_vit2', 'model test_vit, not test_vit2'),
    ('--mask-ratio 0.5', 'mask_ratio 0.6, not 0.5'),
    ('--in-chans 1', 'in_chans 3, not 1'),
    ('--opt lion', 'opt momentum, not lion'),
    ('--mim-kwargs norm_target=True', "mim_kwargs {}, not {'norm_target': True}"),
])
def test_another_run(change, message, uninterrupted, resume, capsys):
    with pytest.raises(SystemExit) as stopped:
        resume(uninterrupted, f'{SGD} {change}')
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_another_optimizer_is_taken_where_the_old_one_is_left(uninterrupted, resume):
    folder = resume(uninterrupted, f'{SGD} --opt lion --no-resume-opt --epochs 3 --lr 1e-4')
    assert epochs(folder) == [0, 1, 2]
