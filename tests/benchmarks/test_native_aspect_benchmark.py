"""The figures of the page on native aspect ratios."""
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import native_aspect


def test_padding(monkeypatch):
    monkeypatch.setattr(native_aspect, '_IMAGES', 30)
    lines = list(native_aspect.padding())
    assert len(lines) == 1 + 2 * len(native_aspect.LENGTHS)
    assert all(0 < float(re.search(r'([\d.]+) %', line).group(1)) < 10 for line in lines[1:])


def test_speed():
    head, *lines = native_aspect.speed('test_vit', images=3, rounds=1, side=64)
    assert '3 images of 16 tokens' in head and len(lines) == 3
    for line in lines:
        images, tokens = (float(value) for value in re.findall(r'([\d.]+) (?:images|tokens)/s', line))
        assert tokens == pytest.approx(16 * images, rel=0.05)


def test_error(tmp_path):
    """A run on square crops is measured on both kinds of images."""
    import runpy
    words = ('train.py --mim simmim --model test_vit --model-kwargs use_naflex=True --dataset samples/photographs '
             f'--workers 0 --batch-size 4 --epochs 1 --device cpu --output {tmp_path} --experiment run').split()
    with mock.patch.object(sys, 'argv', words):
        runpy.run_path(str(Path(__file__).parents[2] / 'train.py'), run_name='__main__')
    own, square = native_aspect.error([tmp_path / 'run'], length=12)
    assert 'own shape' in own and 'square crops' in square and own.count('masked_l1') == square.count('masked_l1') == 1
    values = [float(value) for value in re.findall(r'masked_l1 ([\d.]+)', own + square)]
    assert values[0] != values[1] and all(0 < value < 2 for value in values)
