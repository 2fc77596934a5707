"""Probes in the course of a run."""
import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

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
