"""`validate.py`: figures of one model and of several, and what it refuses."""
import csv
import importlib.util
import json
import logging
import shlex

import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score
from tiny_runs import SCRIPT

import timm
from timm.data import create_dataset, create_loader
from timm.mim.pretrain.errors import UserError


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('validate_script', SCRIPT.with_name('validate.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Three checkpoints of untrained models, the first with another moving average."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for seed in (2, 1, 10):
        torch.manual_seed(seed)
        models = [timm.create_model('test_vit', num_classes=2, img_size=32) for _ in range(2)]
        torch.save(dict(state_dict=models[0].state_dict(), state_dict_ema=models[1].state_dict()),
                   folder / f'{seed}.pth.tar')
    return folder


@pytest.fixture
def run(script, labelled, monkeypatch, capsys):
    """Runs the script, and returns what it prints as JSON."""
    def run(flags):
        command = f'--data-dir {labelled} --model test_vit --num-classes 2 --img-size 32 --device cpu -j 0 {flags}'
        monkeypatch.setattr('sys.argv', ['validate.py', *shlex.split(command)])
        handlers = list(logging.root.handlers)
        try:
            script.main()
        finally:
            logging.root.handlers[:] = handlers
        return json.loads(capsys.readouterr().out.split('--result\n')[1])
    return run


def predictions(checkpoint, key, folder):
    """Logits and labels, as plain timm gives them."""
    model = timm.create_model('test_vit', num_classes=2, img_size=32).eval()
    model.load_state_dict(torch.load(checkpoint)[key])
    dataset = create_dataset('', root=folder, split='validation')
    loader = create_loader(
        dataset, (3, 32, 32), 8, use_prefetcher=False, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic',
        crop_pct=0.95, num_workers=0)
    images, target = next(iter(loader))
    with torch.no_grad():
        return model(images), target


@pytest.mark.parametrize('flags, key', [
    ('', 'state_dict'), ('--use-ema', 'state_dict_ema'), ('--no-prefetcher --batch-size 3', 'state_dict'),
    ('--channels-last --fast-norm --log-freq 1', 'state_dict'), ('--torchcompile eager', 'state_dict'),
])
def test_figures(flags, key, run, checkpoints, labelled):
    results = run(f'--checkpoint {checkpoints}/1.pth.tar --metrics-avg macro {flags}')
    output, target = predictions(checkpoints / '1.pth.tar', key, labelled)
    predicted = output.argmax(1)
    assert results['top1'] == pytest.approx(100 * (predicted == target).float().mean().item())
    assert results['top1_err'] == pytest.approx(100 - results['top1']) and results['top5'] == 100
    for name, score in dict(precision=precision_score, recall=recall_score, f1_score=f1_score).items():
        expected = 100 * score(target, predicted, average='macro', zero_division=0)
        assert results[f'macro_{name}'] == pytest.approx(expected, abs=1e-3)
    model = timm.create_model('test_vit', num_classes=2, img_size=32)
    assert results['param_count'] == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    assert (results['img_size'], results['crop_pct'], results['interpolation']) == (32, 0.95, 'bicubic')


def test_precision(run, checkpoints):
    full = run(f'--checkpoint {checkpoints}/1.pth.tar')
    for flags in ('--amp --amp-dtype bfloat16', '--model-dtype bfloat16'):
        assert run(f'--checkpoint {checkpoints}/1.pth.tar {flags}').keys() == full.keys()


def test_valid_labels(run, checkpoints, tmp_path):
    """Labels count among the classes that are looked at: with the two of them swapped, right is wrong."""
    (tmp_path / 'labels.txt').write_text('1\n0\n')
    plain = run(f'--checkpoint {checkpoints}/1.pth.tar')
    swapped = run(f'--checkpoint {checkpoints}/1.pth.tar --valid-labels {tmp_path}/labels.txt')
    assert swapped['top1'] == plain['top1_err']


def test_folder_of_checkpoints(run, checkpoints, tmp_path):
    one_by_one = [run(f'--checkpoint {checkpoints}/{seed}.pth.tar')['top1'] for seed in (1, 2, 10)]
    results = run(f'--checkpoint {checkpoints} --results-file {tmp_path}/results.csv')
    assert [r['top1'] for r in results] == sorted(one_by_one, reverse=True)
    with open(tmp_path / 'results.csv') as f:
        rows = list(csv.DictReader(f))
    assert [row['checkpoint'] for row in rows] == [r['checkpoint'] for r in results]
    assert [float(row['top1']) for row in rows] == [r['top1'] for r in results]


def test_file_of_models(run, tmp_path):
    """What cannot be evaluated is left out."""
    (tmp_path / 'models.txt').write_text('no_such_model\n\nresnet500\n')
    assert run(f'--model {tmp_path}/models.txt --results-format json --results-file {tmp_path}/r.json') == []
    assert json.loads((tmp_path / 'r.json').read_text()) == []


@pytest.mark.parametrize('flags, message', [
    ('--checkpoint nowhere', 'nowhere'),
    ('--amp --model-dtype bfloat16', 'leave out --model-dtype bfloat16'),
    ('--target-format multihot', '--task multilabel'),
    ('--task multilabel --metrics-avg micro', 'one label an image'),
    ('--device tpuu', '--device tpuu'),
    ('--model resnet500', "'resnet500' is no model of timm; did you mean resnet50"),
    ('--checkpoint {checkpoints}/1.pth.tar --data-dir nowhere', "there is no 'nowhere'"),
    ('--checkpoint {checkpoints}/1.pth.tar --valid-labels nowhere', '--valid-labels nowhere'),
    ('--checkpoint {checkpoints}/1.pth.tar --num-classes 3', '--checkpoint'),
])
def test_mistake(flags, message, run, checkpoints):
    with pytest.raises(UserError, match=message) as stopped:
        run(flags.format(checkpoints=checkpoints))
    assert stopped.type.__name__ == 'UserError' and '\n' not in str(stopped.value)
