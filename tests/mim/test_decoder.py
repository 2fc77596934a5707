import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timm.mim import PixelDecoder, masked_l1_loss


@pytest.mark.parametrize('stride, channels', [(2, 3), (16, 1), (8, 4)])
def test_square_stride_is_pixel_shuffle(stride, channels):
    torch.manual_seed(0)
    decoder = PixelDecoder(5, (stride, stride), out_chans=channels)
    features = torch.randn(2, 5, 2, 3)
    assert torch.equal(decoder(features), F.pixel_shuffle(decoder.proj(features), stride))


def test_rectangular_stride_pixel_by_pixel():
    torch.manual_seed(0)
    rows, columns, channels = 3, 2, 2
    decoder = PixelDecoder(5, (rows, columns), out_chans=channels)
    features = torch.randn(2, 5, 4, 3)
    pixels = decoder(features)
    assert pixels.shape == (2, channels, 4 * rows, 3 * columns)
    weight = decoder.proj.weight[:, :, 0, 0]
    for batch, c, y, x in np.ndindex(*pixels.shape):
        # channel order: image channel, row in the patch, column in the patch
        output = (c * rows + y % rows) * columns + x % columns
        expected = weight[output] @ features[batch, :, y // rows, x // columns] + decoder.proj.bias[output]
        # five float32 products in another order
        assert torch.allclose(pixels[batch, c, y, x], expected, rtol=1e-5, atol=1e-6)


def numpy_loss(prediction, target, mask):
    total, count = 0., 0
    for b, y, x in np.ndindex(*mask.shape):
        if mask[b, y, x]:
            total += np.abs(prediction[b, :, y, x] - target[b, :, y, x]).sum()
            count += 1
    return total / (count + 1e-5) / target.shape[1]


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_loss_in_numpy(channels):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, channels, 6, 8))
    mask = rng.random((2, 6, 8)) < 0.6
    loss = masked_l1_loss(*(torch.tensor(a).float() for a in (prediction, target)), torch.tensor(mask).unsqueeze(1))
    # a sum of about 60 * channels float32 errors
    assert loss.item() == pytest.approx(numpy_loss(prediction, target, mask), rel=1e-5)


def test_loss_without_masked_pixels_is_zero():
    assert masked_l1_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4).bool()) == 0.


def test_loss_of_half_precision_is_computed_in_float32():
    # 4 * 256 * 256 errors of 0.5 sum to 131072, above the largest float16
    prediction = torch.full((1, 4, 256, 256), 0.5, dtype=torch.float16)
    loss = masked_l1_loss(prediction, torch.zeros_like(prediction), torch.ones(1, 1, 256, 256).bool())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5, rel=1e-6)
    # 2048 - 0.5 is 2048 in float16
    target = torch.full((1, 1, 4, 4), 2048., dtype=torch.float16)
    assert masked_l1_loss(target * 0 + 0.5, target, torch.ones(1, 1, 4, 4)).item() == pytest.approx(2047.5, rel=1e-6)
