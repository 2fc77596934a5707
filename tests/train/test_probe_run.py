"""Probes in the course of a run."""
import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import timm
from timm.mim.pretrain.probes.probes import Probes

NAMES = ['knn_top1', 'knn_top1_layer1', 'linear_top1', 'linear_top1_layer1', 'attentive_top1']


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """Bright and dark images: any encoder tells them apart."""
    folder = tmp_path_factory.mktemp('labelled')
    rng = np.random.default_rng(0)
    for name, low in (('dark', 0), ('bright', 160)):
        (folder / name).mkdir()
        for number in range(10):
            Image.fromarray(rng.integers(low, low + 90, (64, 64, 3), dtype=np.uint8)).save(
                folder / name / f'{number}.png')
    return folder


def test_probes_are_asked_when_due(train, images, labelled, tmp_path, capsys):
    run = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 5 --mim-probe-dir {labelled} ' \
          '--mim-probe knn linear attentive --mim-probe-layers 1 last --mim-probe-interval 2 --val-interval 3'
    train(f'{run} --stop-epoch 2')
    train(f'{run} --resume auto')
    with open(tmp_path / 'run' / 'summary.csv') as f:
        table = {int(row['epoch']): row for row in csv.DictReader(f)}
    assert sorted(table) == [1, 2, 3, 4]  # evaluated after 3 epochs, probed after 2, 4 and at the end
    for epoch, row in table.items():
        assert [bool(row[f'eval_{name}']) for name in NAMES] == [epoch != 2] * len(NAMES)
    found = {name: float(table[4][f'eval_{name}']) for name in NAMES}
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['probes'] == found
    assert set(summary['probe_baselines']['encoder before training']) == set(NAMES), 'measured before the first step'
    assert summary['probe_baselines']['pixels'] == dict(knn_top1=100, linear_top1=100)
    assert all(value == 100 for value in found.values()), found

    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    told = {line['epoch']: line for line in lines if 'eval_masked_l1' in line}
    assert 'eval_knn_top1' not in told[2] and told[3]['eval_knn_top1'] == 100
    text = capsys.readouterr().err
    assert f'on {labelled}: 16 images to fit, 4 to test, 2 classes; the most frequent class alone gives 50.0 %' in text
    assert 'accuracy of probes of the last encoder' in text
    assert re.search(r'linear_top1, pixels +100\.0', text) and 'linear_top1, encoder before training' in text


def test_probes_change_nothing_of_the_run(train, images, labelled, tmp_path):
    run = f'--data-dir {images} --output {tmp_path} --epochs 2 --drop-path 0.5'
    train(f'{run} --experiment with --mim-probe-dir {labelled} --mim-probe-interval 1')
    train(f'{run} --experiment without')
    weights = [(tmp_path / name / 'encoder.safetensors').read_bytes() for name in ('with', 'without')]
    assert weights[0] == weights[1]


def test_layer_that_is_not_there(train, images, labelled, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --mim-probe-dir {labelled} '
              '--mim-probe-layers 7')
    assert stopped.value.code == 2 and not (tmp_path / 'run').exists()
    assert "no layer '7'; the model has layers 1 to 6" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope='module')
def given(tmp_path_factory):
    """Weights of a model."""
    path = tmp_path_factory.mktemp('given') / 'weights.pth'
    torch.manual_seed(1)
    torch.save(timm.create_model('test_vit', num_classes=0, img_size=64).state_dict(), path)
    return path


@pytest.mark.parametrize('accuracies, best', [((80., 70., 90., 85.), 1), ((80., 70., 60., 75.), -1)])
def test_best_epoch_by_a_probe(accuracies, best, train, images, labelled, given, tmp_path, monkeypatch, capsys):
    """The encoder before training takes part; accuracies are given, weights are those of the epochs."""
    measured, weights = iter(accuracies), []

    def measure(self, method, autocast):
        weights.append({name: tensor.clone() for name, tensor in method.encoder.state_dict().items()})
        return dict(knn_top1=next(measured))

    monkeypatch.setattr(Probes, 'measure', measure)
    run = (
        f'--mim data2vec --mim-kwargs mask_ratio=0.5 clone_batch=2 decoder_layers=1 --data-dir {images} --output '
        f'{tmp_path} --experiment run --epochs 3 --lr 1e-2 --layer-decay 0.7 --pretrained-path {given} --mim-probe knn '
        f'--mim-probe-dir {labelled} --mim-probe-interval 1 --mim-probe-best')
    train(f'{run} --stop-epoch 1')
    stopped = capsys.readouterr().err
    assert 'encoder before training: no epoch was better' in stopped
    train(f'{run} --resume auto')
    start = torch.load(given)
    assert len(weights) == 4 and all(torch.equal(tensor, weights[0][name]) for name, tensor in start.items())
    encoder = load_file(tmp_path / 'run' / 'encoder.safetensors')
    assert all(torch.equal(encoder[name], tensor) for name, tensor in weights[best + 1].items())
    assert not torch.equal(weights[0]['patch_embed.proj.weight'], weights[1]['patch_embed.proj.weight'])
    results = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert (results['best_epoch'], results['best'], results['best_by']) == (best, max(accuracies), 'knn_top1')
    checkpoint = tmp_path / 'run' / 'model_best.pth.tar'
    assert checkpoint.exists() == (best >= 0)
    if best >= 0:
        assert torch.load(checkpoint, weights_only=False)['epoch'] == best
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['eval_knn_top1'] for line in lines if 'eval_knn_top1' in line] == list(accuracies)
    assert [line['update'] for line in lines if 'eval_knn_top1' in line][0] == 0
    text = capsys.readouterr().err
    assert ('encoder before training: no epoch was better' in text) == (best < 0)
    text = stopped + text
    worse = [f'knn_top1 {value:.1f} % after 80.0 %' for value in accuracies[1:] if value < 80]
    assert text.count('worse than before training') == len(worse) and all(message in text for message in worse)


def test_best_epoch_by_a_probe_needs_one(train, images, capsys):
    with pytest.raises(SystemExit):
        train(f'--data-dir {images} --mim-probe-best')
    assert '--mim-probe-best is for --mim-probe-dir, which is not given' in capsys.readouterr().err
