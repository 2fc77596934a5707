"""Going on with a run."""
import csv
import shutil

import pytest
import torch


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope='module')
def flags(images):
    # Stochastic depth, since the random numbers of the model have to go on as well; loading in another process, which
    # does not touch them.
    return f'--data-dir {images} --epochs 4 --lr 1e-3 --model-ema --model-kwargs drop_path_rate=0.3 --workers 1'


@pytest.fixture(scope='module')
def uninterrupted(train, flags, tmp_path_factory):
    output = tmp_path_factory.mktemp('uninterrupted')
    train(f'{flags} --output {output} --experiment run')
    return output / 'run'


@pytest.fixture
def interrupted(uninterrupted, tmp_path):
    """The folder of that run as it was when two of its four epochs were done."""
    folder = shutil.copytree(uninterrupted, tmp_path / 'run')
    shutil.copyfile(folder / 'checkpoint-1.pth.tar', folder / 'last.pth.tar')
    for name in ('checkpoint-2.pth.tar', 'checkpoint-3.pth.tar', 'model_best.pth.tar', 'encoder.safetensors'):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize('how', ['--resume auto', '--resume {folder}/last.pth.tar'])
def test_resumed_run_equals_an_uninterrupted_one(how, train, flags, uninterrupted, interrupted):
    train(f'{flags} --output {interrupted.parent} --experiment run ' + how.format(folder=interrupted))
    expected, resumed = (
        torch.load(folder / 'last.pth.tar', weights_only=False) for folder in (uninterrupted, interrupted))
    for part in ('epoch', 'metric', 'state_dict', 'task_state', 'state_dict_ema', 'task_state_ema', 'optimizer'):
        assert equal(expected[part], resumed[part]), part
    tables = [list(csv.reader(open(folder / 'summary.csv'))) for folder in (uninterrupted, interrupted)]
    assert tables[0] == tables[1]


def test_resume_without_a_checkpoint_begins(train, flags, uninterrupted, tmp_path):
    train(f'{flags} --output {tmp_path} --experiment run --resume auto')
    assert (tmp_path / 'run' / 'encoder.safetensors').read_bytes() == \
        (uninterrupted / 'encoder.safetensors').read_bytes()


def test_finished_run_is_left_alone(train, flags, uninterrupted):
    before = (uninterrupted / 'summary.csv').read_text(), (uninterrupted / 'last.pth.tar').stat().st_mtime_ns
    train(f'{flags} --output {uninterrupted.parent} --experiment run --resume auto')
    assert ((uninterrupted / 'summary.csv').read_text(), (uninterrupted / 'last.pth.tar').stat().st_mtime_ns) == before


@pytest.mark.parametrize('change, message', [
    ('--mask-ratio 0.5', 'mask_ratio 0.6, not 0.5'),
    ('--mask-unit 32', 'mask_unit 16, not 32'),
    ('--model test_vit2', 'model test_vit, not test_vit2'),
    ('--img-size 32', 'img_size [64, 64], not [32, 32]'),
])
def test_another_run_is_refused(change, message, train, flags, uninterrupted, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'{flags} --output {uninterrupted.parent} --experiment run --resume auto {change}')
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
