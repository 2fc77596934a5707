"""The two measurements of what leaks from masked pixels."""
import pytest
import torch

from benchmarks import leak
from timm.mim.method import MIMMethod


@pytest.mark.parametrize('name', ['test_vit', 'test_byobnet'])
def test_ratio_is_zero(name):
    torch.manual_seed(0)
    assert leak.leak_ratio(leak.create(name)) == 0.


def test_ratio_sees_a_leak(monkeypatch):
    monkeypatch.setattr(MIMMethod, 'blank', lambda self, images, mask: images)
    torch.manual_seed(0)
    assert 0.05 < leak.leak_ratio(leak.create('test_byobnet')) < 1.


def test_squares():
    torch.manual_seed(0)
    images = leak.squares(64, 96)
    assert images.shape == (64, 3, 96, 96)
    squares = images.unfold(2, 32, 32).unfold(3, 32, 32).flatten(4)
    assert torch.equal(squares.amax(-1), squares.amin(-1))
    # the loss of predicting 0; 1728 squares, a standard error of 0.6 / sqrt(1728)
    assert abs(images.abs().mean() - 0.798) < 0.06
    line, = leak.train_on_squares('test_vit', steps=2, batch_size=2, size=96, report=2)
    assert line.startswith('step 2: L1 ') and line.endswith('blind models have 0.798 at best')
