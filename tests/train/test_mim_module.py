"""A method in a file of the user's own, and targets other than pixels, through the training script."""
import csv
import json
import sys
from pathlib import Path

import pytest
import torch

import timm
from timm.mim import TeacherTarget, factory

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'maskfeat.py'


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))
    for name in [name for name in sys.modules if name.startswith('maskfeat (')]:
        monkeypatch.delitem(sys.modules, name)


def column(folder, name):
    with open(folder / 'summary.csv') as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_example_on_the_sample_photographs(train, tmp_path):
    arguments = '--mim maskfeat --device cpu --model test_vit --img-size 64 --workers 0 --batch-size 4'
    train(f'--mim-module {EXAMPLE} {arguments} --output {tmp_path} --experiment run --epochs 3 --epoch-repeats 2 '
          '--lr 2e-3', tiny=False)
    folder = tmp_path / 'run'
    losses = column(folder, 'eval_loss')
    assert len(losses) == 3 and losses[-1] < losses[0]
    encoder = timm.create_model('test_vit', num_classes=0, img_size=64, checkpoint_path=folder / 'encoder.safetensors')
    assert encoder(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert json.loads((folder / 'summary.json').read_text())['metric'] == 'loss'
    # a second run in a process finds the method registered
    train(f'--mim-module {EXAMPLE} {arguments} --output {tmp_path} --experiment run --epochs 3 --epoch-repeats 2 '
          '--lr 2e-3 --resume auto', tiny=False)


@pytest.mark.parametrize('name, message', [
    ('{path}/none.py', '--mim-module {path}/none.py: FileNotFoundError'),
    ('{path}/broken.py', '--mim-module {path}/broken.py: ZeroDivisionError: division by zero'),
    ('no_such_module', "--mim-module no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
])
def test_mistakes(name, message, train, tmp_path, capsys):
    (tmp_path / 'broken.py').write_text('1 / 0')
    with pytest.raises(SystemExit) as exit:
        train(f'--mim-module {name.format(path=tmp_path)} --output {tmp_path}/output')
    assert exit.value.code == 2 and not (tmp_path / 'output').exists()
    error = capsys.readouterr().err
    assert message.format(path=tmp_path) in error and error.count('\n') == 1


def test_simmim_with_histograms(train, images, tmp_path):
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 3 --lr 2e-3 '
          '--mim-kwargs target=hog loss=l2')
    losses = column(tmp_path / 'run', 'eval_loss')
    assert losses[-1] < losses[0]
    assert column(tmp_path / 'run', 'eval_loss_of_constant')[0] > 0


def test_simmim_with_a_teacher(train, images, tmp_path):
    teacher = timm.create_model('test_vit2', num_classes=0, img_size=64)
    timm.models.save_for_hf(teacher, tmp_path / 'teacher', model_args=dict(img_size=64))
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 2 --lr 2e-3 --model-ema '
          f'--mim-kwargs target=local-dir:{tmp_path}/teacher')
    losses = column(tmp_path / 'run', 'eval_loss')
    assert losses[-1] < losses[0]
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    names = [*checkpoint['state_dict'], *checkpoint['task_state']['method']] if 'task_state' in checkpoint else []
    assert names and not [name for name in names if 'teacher' in name or 'target' in name]


def test_missing_teacher(train, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train(f'--data-dir {images} --output {tmp_path}/output --mim-kwargs target=local-dir:{tmp_path}/nowhere')
    assert exit.value.code == 2 and not (tmp_path / 'output').exists()
    assert capsys.readouterr().err.count('\n') == 1


def test_normalisation_of_the_run_reaches_the_teacher(monkeypatch, train, images, tmp_path):
    seen = []
    monkeypatch.setattr(
        TeacherTarget, 'set_image_statistics', lambda self, mean, std: seen.append((tuple(mean), tuple(std))))
    monkeypatch.setattr(TeacherTarget, 'forward', lambda self, x: torch.zeros(len(x), 5, 4, 4))
    teacher = timm.create_model('test_vit2', num_classes=0, img_size=64)
    timm.models.save_for_hf(teacher, tmp_path / 'teacher', model_args=dict(img_size=64))
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --mean 0.1 --std 0.2 '
          f'--mim-kwargs target=local-dir:{tmp_path}/teacher')
    assert seen[-1] == ((0.1,) * 3, (0.2,) * 3)
