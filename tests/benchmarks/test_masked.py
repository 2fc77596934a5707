"""The benchmark of SparK and FCMAE, and the digits with a small ResNet, at their smallest."""
import argparse
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import digits_resnet  # noqa: E402
from benchmarks import latent, masked  # noqa: E402


def test_table_of_costs():
    args = argparse.Namespace(
        batch_size=2, img_size=64, decoder_dims=[64, 32], rounds=1, compile=False, device=torch.device('cpu'))
    lines = masked.measure('test_resnet', masked.steps_of('test_resnet', args), 1, args.device)
    names = [line.split(' | ')[1] for line in lines]
    assert names == ['dense', 'masked encoder', 'FCMAE', 'SparK, decoder 64', 'SparK, decoder 32']
    ratios = [[float(value) for value in re.findall(r'\d+\.\d+', line.split(' MiB ')[1])] for line in lines]
    assert ratios[0] == [1., 1., 1.]
    flops = [row[0] for row in ratios]
    assert flops[1] == 1. and 1. < flops[4] < flops[3]  # masks add no products, and a narrower decoder has fewer


def test_table_of_costs_of_features():
    """The teacher's pass over whole images is a part of the cost, and serves all masks of an image."""
    steps = latent.steps_of('test_vit', 2, {
        'one': dict(method='data2vec', clone_batch=1), 'four': dict(method='data2vec', clone_batch=4)})
    lines = masked.measure('test_vit', steps, 1, torch.device('cpu'))
    one, four = (float(re.findall(r'\d+\.\d+', line.split(' MiB ')[1])[0]) for line in lines[1:])
    assert 1. < one < four < 2 * one


def test_digits_with_a_small_resnet(monkeypatch):
    """Both methods train the ResNet that is fine-tuned, and each start gives an accuracy."""
    for name in ('PRETRAINING', 'FINE_TUNING'):
        monkeypatch.setattr(digits_resnet, name, dict(getattr(digits_resnet, name), steps=1, batch_size=4))
    monkeypatch.setattr(digits_resnet, 'LABELS_PER_CLASS', (2,))
    images, labels = digits_resnet.read_digits('train')
    monkeypatch.setattr(
        digits_resnet, 'read_digits', lambda split: (images, labels) if split == 'train' else (images[:8], labels[:8]))
    for start in (digits_resnet.SCRATCH, *digits_resnet.METHODS):
        result = digits_resnet.run(0, start)
        assert len(result) == 1 and 0 <= result[0] <= 100
