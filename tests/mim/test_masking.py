from fractions import Fraction

import numpy as np
import pytest
import torch

from timm.mim import masked_count, random_mask, unit_grid, upsample_mask


@pytest.mark.parametrize('num_units, ratio, count', [
    (36, 0.6, 22),  # 192 px in units of 32, as published
    (49, 0.6, 30),  # 224 px
    (50, 0.6, 30),
    (100, 0.55, 55),  # 0.55 * 100 is 55.00000000000001 as floats
    (100, 0.07, 7),  # 0.07 * 100 is 7.000000000000001
    (196, 0.75, 147),
    (10, 0.9, 9),
    (4, 0.01, 1),
])
def test_count(num_units, ratio, count):
    assert masked_count(num_units, ratio) == count
    assert masked_count(num_units, np.float32(ratio)) == count


def test_count_is_the_exact_ceiling_of_every_hundredth():
    for hundredths in range(1, 100):
        for num_units in range(1, 401):
            count = -(-num_units * hundredths // 100)  # in integers
            if count < num_units:
                assert masked_count(num_units, hundredths / 100) == count
                assert masked_count(num_units, Fraction(hundredths, 100)) == count


@pytest.mark.parametrize('ratio', [0, 1, -0.5, 1.5, float('nan')])
def test_ratio_outside_the_open_interval(ratio):
    with pytest.raises(ValueError, match=f'^mask_ratio must be a number between 0 and 1, both excluded, got {ratio}.$'):
        masked_count(36, ratio)


def test_ratio_that_leaves_nothing_visible():
    with pytest.raises(ValueError, match='^mask_ratio 0.99 masks all 36 units of the image, take a smaller .*units.$'):
        masked_count(36, 0.99)


def test_the_smallest_noise_is_masked():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.5, 0.6, 0.4, 0.7]])
    assert random_mask(noise, 2).tolist() == [[False, True, False, True], [True, False, True, False]]


def test_equal_noise_masks_exactly_that_many_the_first_ones():
    assert random_mask(torch.zeros(3, 5), 2).tolist() == [[True, True, False, False, False]] * 3


def test_masks_are_uniform_over_sets():
    # all 20 ways to mask 3 of 6 units are equally likely: chi-square over 20 cells, its 0.999 quantile at 19 degrees
    # of freedom is 43.8
    noise = torch.rand(20000, 6, generator=torch.Generator().manual_seed(0))
    mask = random_mask(noise, 3)
    assert (mask.sum(1) == 3).all()
    codes = (mask * 2 ** torch.arange(6)).sum(1)
    counts = codes.bincount(minlength=64)
    counts = counts[counts > 0].double()
    assert len(counts) == 20
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8


def test_unit_grid_is_rectangular():
    assert unit_grid((192, 192), (32, 32), (16, 16)) == (6, 6)
    assert unit_grid((64, 96), (32, 32), (4, 4)) == (2, 3)
    assert unit_grid((64, 96), (32, 16), (16, 8)) == (2, 6)


@pytest.mark.parametrize('img_size, mask_unit, patch_stride, message', [
    ((224, 224), (24, 24), (16, 16),
     'mask_unit 24 does not fit image height 224 with patch stride 16: it must be a multiple of the stride that '
     'divides the image, one of 16, 32, 112, 224.'),
    ((224, 192), (64, 64), (16, 16),
     'mask_unit 64 does not fit image height 224 with patch stride 16: it must be a multiple of the stride that '
     'divides the image, one of 16, 32, 112, 224.'),
    ((64, 96), (32, 64), (16, 8),
     'mask_unit 64 does not fit image width 96 with patch stride 8: it must be a multiple of the stride that '
     'divides the image, one of 8, 16, 24, 32, 48, 96.'),
])
def test_unit_that_does_not_fit(img_size, mask_unit, patch_stride, message):
    with pytest.raises(ValueError) as error:
        unit_grid(img_size, mask_unit, patch_stride)
    assert str(error.value) == message


def test_upsample_mask_is_a_kronecker_product():
    mask = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = np.stack([np.kron(cells, np.ones((3, 2), dtype=bool)) for cells in mask.numpy()])
    assert np.array_equal(upsample_mask(mask, (3, 2)).numpy(), expected)
