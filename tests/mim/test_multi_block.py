"""Multi-block masks: the official ones against those of lightly, the default ones by their properties."""
import pytest
import torch

from timm.mim import MultiBlockSampler, keyed_noise, official_multi_block_masks
from timm.mim.multi_block import OfficialMultiBlockSampler


@pytest.mark.parametrize('options', [
    dict(),
    dict(grid_size=(16, 16), batch_size=9),
    dict(grid_size=(12, 20)),
    dict(grid_size=(10, 10), target_scale=(0.2, 0.3), num_targets=6),  # tries fail, targets are given up one by one
    dict(target_aspect=(0.3, 3.0), context_scale=(0.5, 0.9), num_targets=2, min_keep=4),
], ids=str)
def test_official_masks_are_those_of_lightly(options):
    collate = pytest.importorskip('lightly.data.ijepa_collate')
    options = {**dict(
        grid_size=(14, 14), batch_size=4, num_targets=4, target_scale=(0.15, 0.2), target_aspect=(0.75, 1.5),
        context_scale=(0.85, 1.0), min_keep=10), **options}
    theirs = collate.IJEPAMaskCollator(
        input_size=tuple(16 * cells for cells in options['grid_size']), patch_size=16,
        enc_mask_scale=options['context_scale'], pred_mask_scale=options['target_scale'],
        aspect_ratio=options['target_aspect'], nenc=1, npred=options['num_targets'], min_keep=options['min_keep'])
    lengths = set()
    for step in range(6):  # their counter of batches seeds the sizes
        torch.manual_seed(100 + step)
        _, contexts, targets = theirs([torch.zeros(1)] * options['batch_size'])
        expected_state = torch.get_rng_state()
        torch.manual_seed(100 + step)
        masks = official_multi_block_masks(step=step, **options)
        assert torch.equal(torch.get_rng_state(), expected_state)
        generator = torch.Generator().manual_seed(100 + step)
        again = official_multi_block_masks(step=step, generator=generator, **options)
        for ours in (masks, again):
            assert torch.equal(ours.context, contexts[0])
            assert torch.equal(ours.targets, torch.stack(list(targets), 1))
        lengths.add(masks.context.shape[1])
    assert len(lengths) > 1  # the reason for a compiled step to recompile


def test_official_sampler_is_seeded_by_noise():
    sampler = OfficialMultiBlockSampler((14, 14))
    noise = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    masks = sampler(noise)
    assert torch.equal(torch.get_rng_state(), state)
    step, seed = (noise[0] * 2 ** 24).long().tolist()
    expected = official_multi_block_masks((14, 14), 3, step, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(masks, expected))


def test_official_defects():
    """What the default sampler is for: the last row and column, and the bottom of the image."""
    masks = [official_multi_block_masks((14, 14), 16, step, torch.Generator().manual_seed(step)) for step in range(12)]
    targets = torch.cat([m.targets.flatten() for m in masks])
    rows, columns = targets // 14, targets % 14
    assert rows.max() == columns.max() == 12
    rows = torch.cat([m.context.flatten() for m in masks]).div(14, rounding_mode='floor').bincount(minlength=14)
    assert rows[:3].sum() > 4 * rows[11:].sum() and rows[13] == 0


def noise_for(sampler, batch_size, seed=0):
    return torch.rand(batch_size, sampler.noise_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('grid_size, sizes', [
    ((14, 14), {(5, 6), (6, 5), (6, 6), (7, 5)}),  # 29.4 to 39.2 patches, heights of 0.75 to 1.5 widths
    ((8, 8), {(3, 4), (4, 3)}),
    ((4, 6), {(2, 2)}),
    ((7, 7), {(3, 3)}),
])
def test_default_masks(grid_size, sizes):
    sampler = MultiBlockSampler(grid_size)
    assert {tuple(size) for size in sampler.target_sizes.tolist()} == sizes
    masks = sampler(noise_for(sampler, 500))
    num_patches = grid_size[0] * grid_size[1]
    assert masks.targets.shape == (500, 4, min(h * w for h, w in sizes)) and masks.targets.dtype == torch.int64
    assert masks.context.shape == (500, sampler.context_length)
    for indices in masks:
        assert indices.min() >= 0 and indices.max() < num_patches
        assert (indices.diff(dim=-1) > 0).all()  # each at most once, in row-major order
    # every target lies in a block of one of the sizes
    rows, columns = masks.targets // grid_size[1], masks.targets % grid_size[1]
    heights = rows.amax(-1) - rows.amin(-1) + 1
    widths = columns.amax(-1) - columns.amin(-1) + 1
    assert all(any(h <= a and w <= b for a, b in sizes) for h, w in zip(heights.flatten(), widths.flatten()))
    assert not overlaps(masks).any()


def overlaps(masks):
    """Which samples (B) have a patch in the context and in a target."""
    return (masks.context[:, :, None] == masks.targets.flatten(1)[:, None]).any(-1).any(-1)


@pytest.mark.parametrize('grid_size, options', [
    ((4, 4), dict(num_targets=3)), ((4, 6), {}), ((2, 3), dict(num_targets=2)), ((5, 5), {}),
    ((8, 8), dict(context_scale=(0.1, 0.2)))])
def test_context_never_meets_a_target(grid_size, options):
    """Also in small grids, whose targets leave little of the context block."""
    sampler = MultiBlockSampler(grid_size, **options)
    assert sampler.context_length >= 1
    assert not overlaps(sampler(noise_for(sampler, 20000))).any()


def test_default_targets_lie_anywhere():
    """Corners of blocks are uniform over all places that they have, the last ones included."""
    sampler = MultiBlockSampler((8, 8), target_scale=(12 / 64, 12 / 64), target_aspect=(0.75, 0.75))
    assert sampler.target_sizes.tolist() == [[3, 4]] and sampler.target_length == 12
    corners = sampler(noise_for(sampler, 3000)).targets[:, :, 0].flatten()
    counts = corners.bincount(minlength=64).view(8, 8)
    assert not counts[6:].any() and not counts[:, 5:].any()
    expected = 12000 / 30
    # chi-square, its 0.999 quantile at 29 degrees of freedom is 58.3; of 4 blocks each is independent
    assert ((counts[:6, :5] - expected) ** 2 / expected).sum() < 58.3


def test_default_context_does_not_starve_the_bottom():
    sampler = MultiBlockSampler((14, 14))
    context = sampler(noise_for(sampler, 2000)).context
    rows = (context // 14).flatten().bincount(minlength=14).float()
    # the grid is turned upside down by 1 - noise, nothing tells top from bottom; 2000 * 4 patches a row
    assert (rows / rows.flip(0) - 1).abs().max() < 0.1


def test_default_masks_drop_surplus_patches_at_random():
    sampler = MultiBlockSampler((14, 14))
    targets = sampler(noise_for(sampler, 2000)).targets.flatten(0, 1)
    rows, columns = targets // 14, targets % 14
    square = (rows.amax(-1) - rows.amin(-1) == 5) & (columns.amax(-1) - columns.amin(-1) == 5)  # 6 x 6, 30 of 36
    relative = (rows - rows.amin(-1, keepdim=True))[square]
    counts = relative.flatten().bincount(minlength=6).float()
    assert square.sum() > 1000
    assert (counts / counts.mean() - 1).abs().max() < 0.05


def test_default_context_keeps_out_of_targets_and_fills_up_outside_of_its_block():
    sampler = MultiBlockSampler((14, 14), context_scale=(0.3, 0.3))
    noise = noise_for(sampler, 400)
    blocks = sampler._blocks(noise)
    own = blocks[:, -1] & ~blocks[:, :-1].any(1)
    context = torch.zeros(400, 196, dtype=torch.bool).scatter(1, sampler(noise).context, True)
    short = own.sum(1) < sampler.context_length
    assert 0 < short.float().mean() < 0.05
    assert (context[short] & own[short]).sum() == own[short].sum()  # all that there is, and more
    assert (context[~short] <= own[~short]).all()
    assert not (context & blocks[:, :-1].any(1)).any()


def test_default_masks_depend_on_the_noise_of_their_own_sample_alone():
    sampler = MultiBlockSampler((8, 12))
    positions = torch.arange(6)
    whole = sampler(keyed_noise(0, 3, positions, sampler.noise_size))
    for rank in (0, 1):
        part = sampler(keyed_noise(0, 3, positions[rank::2], sampler.noise_size))
        assert all(torch.equal(a, b[rank::2]) for a, b in zip(part, whole))


def test_default_sampler_has_no_state_and_no_trace():
    state = torch.get_rng_state()
    sampler = MultiBlockSampler((14, 14))
    assert torch.equal(torch.get_rng_state(), state)
    assert not sampler.state_dict()
    with torch.device('meta'):
        assert MultiBlockSampler((14, 14)).context_length == sampler.context_length


def test_extreme_noise():
    sampler = MultiBlockSampler((4, 6))
    for value in (0., 1 - 2 ** -24, 1.):
        masks = sampler(torch.full((2, sampler.noise_size), value))
        assert masks.targets.max() < 24 and masks.context.shape == (2, sampler.context_length)


@pytest.mark.parametrize('call, message', [
    (lambda: MultiBlockSampler((2, 2)),
     'A grid of 2 x 2 patches is too small for 4 target blocks of 1 patches, which may leave no context: '
     'take at most 3 (num_targets=3), larger images or smaller patches.'),
    (lambda: MultiBlockSampler((4, 4)),
     'A grid of 4 x 4 patches is too small for 4 target blocks of 4 patches, which may leave no context: '
     'take at most 3 (num_targets=3), larger images or smaller patches.'),
    (lambda: MultiBlockSampler((14, 14), target_scale=(0.3, 0.2)),
     'target_scale must be a pair (smallest, largest) of positive numbers up to 1, got (0.3, 0.2).'),
    (lambda: MultiBlockSampler((14, 14), context_scale=(0.9, 1.1)),
     'context_scale must be a pair (smallest, largest) of positive numbers up to 1, got (0.9, 1.1).'),
    (lambda: MultiBlockSampler((14, 14), target_aspect=1.),
     'target_aspect must be a pair (smallest, largest) of positive numbers, got 1.0.'),
    (lambda: OfficialMultiBlockSampler((14, 14), num_targets=0),
     'num_targets must be a positive number of blocks, got 0.'),
    (lambda: OfficialMultiBlockSampler((6, 6)),
     'The official sampler wants blocks of more than 10 patches, a target block in a grid of 6 x 6 has 3 x 2: take '
     'more patches or the default sampler.'),
])
def test_mistakes(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
