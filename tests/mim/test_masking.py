from fractions import Fraction

import numpy as np
import pytest
import torch

from timm.mim import (
    block_mask, block_noise_size, create_mim, masked_count, random_mask, split_mask, unit_grid, upsample_mask)
from timm.mim.masking import unit_patches
from tiny_models import build, images_for


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
    with pytest.raises(ValueError, match='^mask_ratio 0.99 masks all 36 units of the image: use a smaller .*units.$'):
        masked_count(36, 0.99)


def test_the_smallest_noise_is_masked():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.5, 0.6, 0.4, 0.7]])
    assert random_mask(noise, 2).tolist() == [[False, True, False, True], [True, False, True, False]]


def test_equal_noise_masks_exactly_that_many_the_first_ones():
    assert random_mask(torch.zeros(3, 5), 2).tolist() == [[True, True, False, False, False]] * 3


def test_split_is_row_major():
    mask = random_mask(torch.rand(3, 40, generator=torch.Generator().manual_seed(0)), 13)
    visible, masked = split_mask(mask, 27)
    for row, row_visible, row_masked in zip(mask.numpy(), visible, masked):
        assert row_visible.tolist() == np.flatnonzero(~row).tolist()
        assert row_masked.tolist() == np.flatnonzero(row).tolist()


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


def test_patches_of_units():
    """By way of a mask: units that are enlarged, and the indices of their patches."""
    units = torch.tensor([[[0, 5], [4, 1]], [[2, 3], [5, 4]]])  # (B, T, U) of a grid of 2 x 3
    chosen = torch.zeros(4, 6, dtype=torch.bool).scatter(1, units.flatten(0, 1), True).view(4, 2, 3)
    expected = upsample_mask(chosen, (2, 4)).flatten(1).nonzero()[:, 1].view(2, 2, 16)
    assert torch.equal(unit_patches(units, (2, 3), (4, 12)), expected)


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


def block_noise(grid_size, batch_size, seed=0):
    return torch.rand(batch_size, block_noise_size(grid_size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('grid_size, count', [((14, 14), 78), ((14, 14), 147), ((4, 9), 20), ((6, 6), 1), ((3, 5), 14)])
def test_blocks_mask_exactly_the_count(grid_size, count):
    mask = block_mask(block_noise(grid_size, 300), grid_size, count)
    assert mask.shape == (300, grid_size[0] * grid_size[1]) and (mask.sum(1) == count).all()


def test_one_block_by_hand():
    # area 16 + 0.5 * (78 - 16) = 47, aspect 1: 7 x 7, at row floor(0.5 * 8) and column floor(0.99 * 8)
    noise = block_noise((14, 14), 1)
    noise[0, :4] = torch.tensor([0.5, 0.5, 0.5, 0.99])
    mask = block_mask(noise, (14, 14), 78).view(14, 14)
    assert mask[4:11, 7:14].all()
    # aspect 0.3 ** -0.5 = 1.826 and area 16 + 0.25 * 62 = 31.5: 7.58 x 4.15, rounded 8 x 4, at row 0 and column 5
    noise[0, :4] = torch.tensor([0.25, 0.75, 0.1, 0.5])
    mask = block_mask(noise, (14, 14), 78).view(14, 14)
    assert mask[:8, 5:9].all()


def test_the_last_block_is_shrunk_about_its_centre():
    noise = block_noise((14, 14), 1)
    noise[0, :4] = torch.tensor([0.999999, 0.5, 0.5, 0.5])  # 9 x 9 for a count of 78, at row and column 3
    mask = block_mask(noise, (14, 14), 78).view(14, 14)
    assert mask[4:11, 4:11].all() and not mask[:3].any() and not mask[12:].any() and not mask[:, :3].any()
    assert mask[3:12, 3:12].sum() == 78


def test_blocks_are_blocks():
    """Neighbours of masked units are masked far more often than at random."""
    mask = block_mask(block_noise((14, 14), 500), (14, 14), 78).view(-1, 14, 14)
    both = (mask[:, :, 1:] & mask[:, :, :-1]).float().mean()
    assert both > 0.3  # at random 0.4 squared
    # any place can be masked, no place always is; blocks lie nearer to the middle
    share = mask.float().mean(0)
    assert 0 < share.min() and share.max() < 0.8


def test_more_than_all_blocks_cover_is_filled_at_random():
    noise = block_noise((14, 14), 200)
    noise[:, :64] = torch.tensor([0., 0.5, 0., 0.]).repeat(16)  # the same 4 x 4 block 16 times
    mask = block_mask(noise, (14, 14), 100).view(-1, 14, 14)
    assert mask[:, :4, :4].all() and (mask.flatten(1).sum(1) == 100).all()
    share = mask.float().mean(0)[4:, 4:]
    assert 0.25 < share.min() and share.max() < 0.7  # 84 of the other 180


@pytest.mark.parametrize('method, options, count', [
    ('simmim', dict(mask_unit=16), 15), ('mae', dict(decoder_dim=24, decoder_depth=1, decoder_heads=2), 18)])
def test_methods_with_blocks(method, options, count):
    method = create_mim(method, build('vit'), masking='block', **options)
    noise = torch.rand(method.noise_shape(3))
    assert noise.shape == (3, block_noise_size((4, 6)))
    output = method(images_for(method, 3), noise=noise)
    assert torch.equal(output.mask.flatten(1), block_mask(noise, (4, 6), count))
    with pytest.raises(ValueError, match="^masking must be 'random' or 'block', got 'blocks'.$"):
        create_mim('mae', build('vit'), masking='blocks')
