import numpy as np
import pytest
import torch

from timm.mim import MAE, normalize_patches, patchify, unpatchify, visible_count
from timm.mim.masking import scatter_patches, split_mask
from tiny_models import build, images_for


def mae(name='vit', mask_ratio=0.75, **kwargs):
    torch.manual_seed(0)
    return MAE(
        build(name), img_size=(64, 96), mask_ratio=mask_ratio,
        **{**dict(decoder_dim=24, decoder_depth=2, decoder_heads=2), **kwargs})


def some_mask(method, num_visible, batch_size=2, seed=2):
    noise = torch.rand(batch_size, method.num_patches, generator=torch.Generator().manual_seed(seed))
    return (noise.argsort(1).argsort(1) >= num_visible).view(batch_size, *method.grid_size)


@pytest.mark.parametrize('num_patches, ratio, exact, reference', [
    (100, 0.9, 10, 9), (10, 0.9, 1, None), (196, 0.75, 49, 49), (50, 0.6, 20, 20), (7, 0.5, 3, 3)])
def test_visible_count(num_patches, ratio, exact, reference):
    assert visible_count(num_patches, ratio) == exact
    if reference is None:
        with pytest.raises(ValueError, match='^mask_ratio 0.9 masks all 10 patches with reference_count.$'):
            visible_count(num_patches, ratio, reference_count=True)
    else:
        assert visible_count(num_patches, ratio, reference_count=True) == reference


def test_visible_count_is_the_exact_floor_of_every_hundredth():
    for hundredths in range(1, 100):
        for num_patches in range(1, 401):
            count = num_patches * (100 - hundredths) // 100  # in integers
            if count:
                assert visible_count(num_patches, hundredths / 100) == count


def test_split_and_scatter():
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    visible, masked = split_mask(mask, 2)
    assert visible.tolist() == [[1, 4], [0, 3]] and masked.tolist() == [[0, 2, 3], [1, 2, 4]]
    tokens = torch.arange(1., 13.).view(2, 3, 2)  # a prefix token and two patches
    expected = torch.zeros(2, 6, 2)
    for sample in range(2):
        expected[sample, 0] = tokens[sample, 0]
        for i, place in enumerate(visible[sample].tolist()):
            expected[sample, 1 + place] = tokens[sample, 1 + i]
    assert torch.equal(scatter_patches(tokens, visible, 5, num_prefix_tokens=1), expected)
    assert torch.equal(scatter_patches(tokens[:, 1:], visible, 5), expected[:, 1:])


def test_the_smallest_noise_stays_visible():
    method = mae(mask_ratio=0.6)
    noise = torch.rand(50, 24, generator=torch.Generator().manual_seed(0))
    mask = method(images_for(method, 50), noise=noise).mask.flatten(1)
    assert torch.equal(mask, noise.argsort(1).argsort(1) >= 9)  # 24 * 0.4 is 9.6
    assert method.noise_shape(50) == (50, 24)


def test_patches_pixel_by_pixel():
    images = torch.randn(2, 3, 4, 9)
    patches = patchify(images, (2, 3))
    assert patches.shape == (2, 6, 18)
    for b, c, y, x in np.ndindex(*images.shape):
        # order of patches row-major, in a patch (row, column, channel)
        assert patches[b, y // 2 * 3 + x // 3, (y % 2 * 3 + x % 3) * 3 + c] == images[b, c, y, x]
    assert torch.equal(unpatchify(patches, (2, 3), (2, 3)), images)


def test_normalized_patches_in_numpy():
    patches = np.random.default_rng(0).normal(2., 3., size=(2, 5, 12))
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    # double precision against float32
    np.testing.assert_allclose(normalize_patches(torch.tensor(patches).float()).numpy(), expected, rtol=1e-5, atol=1e-5)
    flat = torch.full((1, 1, 12), 5.)
    flat[0, 0, 0] += 12e-3  # 1e-3 above the mean, to about 1 / 12: the constant matters
    variance = np.var(flat.double().numpy(), ddof=1)
    assert normalize_patches(flat)[0, 0, 0].item() == pytest.approx(11e-3 / np.sqrt(variance + 1e-6), rel=1e-3)
    assert not normalize_patches(torch.full((1, 1, 12), 5.)).any()
    assert normalize_patches(torch.ones(1, 1, 12, dtype=torch.float16)).dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('name', ['vit', 'vit_rectangular_patch', 'hiera'])
def test_loss_from_the_reconstruction(name, norm_pix):
    method = mae(name, norm_pix=norm_pix).eval()
    images = images_for(method) * 3 + 1
    output = method(images, noise=torch.rand(method.noise_shape(2)))
    predicted = patchify(method.reconstruct(images, output.mask), method.patch_stride).double().numpy()
    target = patchify(images, method.patch_stride).double().numpy()
    if norm_pix:
        target = target - target.mean(-1, keepdims=True)
        target /= np.sqrt((target ** 2).sum(-1, keepdims=True) / (target.shape[-1] - 1) + 1e-6)
    errors, mask = ((predicted - target) ** 2).mean(-1), output.mask.flatten(1).numpy()
    assert output.loss.item() == pytest.approx((errors * mask).sum() / mask.sum(), rel=1e-5)
    np.testing.assert_allclose(output.prediction.flatten(0, 1), predicted[mask], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.target.flatten(0, 1), target[mask], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_given_masks():
    method = mae().eval()
    images = images_for(method)
    mask = some_mask(method, 11)  # another number than the ratio's 6
    output, flat = method(images, mask=mask), method(images, mask=mask.flatten(1))
    assert torch.equal(output.loss, flat.loss) and torch.equal(output.mask, mask)
    assert output.prediction.shape == (2, 13, 768)
    # the same as by noise
    noise = torch.rand(2, 24)
    by_noise = method(images, noise=noise)
    assert torch.equal(method(images, mask=by_noise.mask).loss, by_noise.loss)
    assert method.reconstruct(images, torch.zeros_like(mask)).shape == images.shape


def test_generator_and_default_generator():
    method = mae()
    images = images_for(method)
    first = method(images, generator=torch.Generator().manual_seed(5)).mask
    assert torch.equal(method(images, generator=torch.Generator().manual_seed(5)).mask, first)
    torch.manual_seed(5)
    assert torch.equal(method(images).mask, first)
    assert not torch.equal(method(images).mask, first)


@torch.no_grad()
def test_prefix_tokens_pass_through_the_decoder():
    method = mae('vit_registers').eval()
    images, mask = images_for(method), some_mask(method, 6)
    seen = []
    method.decoder.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.reconstruct(images, mask)
    visible, _ = split_mask(mask.flatten(1), 6)
    tokens = method.backbone.keep_tokens(method.backbone.embed(images), visible)
    features = method.decoder_embed(method.backbone.forward_stages(tokens))
    assert method.num_prefix_tokens == 5 and seen[0].shape == (2, 29, 24)
    torch.testing.assert_close(seen[0][:, :5], features[:, :5])  # positions of zeros
    for sample in range(2):
        for place in range(24):
            position = method.decoder.pos_embed[0, 5 + place]
            token = method.decoder.mask_token[0, 0]
            if not mask[sample].flatten()[place]:
                token = features[sample, 5 + visible[sample].tolist().index(place)]
            torch.testing.assert_close(seen[0][sample, 5 + place], token + position)


def test_raw_and_painted_reconstruction():
    """The raw prediction does not know brightness and contrast of a patch, the picture does: it leaks."""
    method = mae().eval()
    images, mask = images_for(method), some_mask(method, 6)
    pixels = method.pixel_mask(mask)
    brighter = torch.where(pixels, images * 2 + 3, images)
    with torch.no_grad():
        assert torch.equal(method.reconstruct(brighter, mask), method.reconstruct(images, mask))
        picture = method.reconstruct_with_target_statistics(images, mask)
        leak = method.reconstruct_with_target_statistics(brighter, mask)
    torch.testing.assert_close(leak[pixels.expand_as(leak)], (picture * 2 + 3)[pixels.expand_as(leak)])
    patches, target = (patchify(x, (16, 16)) for x in (picture, images))
    raw = patchify(method.reconstruct(images, mask), (16, 16))
    expected = raw * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    torch.testing.assert_close(patches, expected)
    assert not method.reconstructs_pixels
    assert [view.label for view in method.views(images, torch.rand(method.noise_shape(2)))] == [
        'original', 'masked input', 'visible + prediction (true mean, variance)']
    plain = mae(norm_pix=False).eval()
    assert plain.reconstructs_pixels
    with torch.no_grad():
        assert torch.equal(
            plain.reconstruct_with_target_statistics(images, mask), plain.reconstruct(images, mask))


def test_parameters_without_weight_decay():
    assert mae(decoder_pos_embed='learn').no_weight_decay() == {
        'decoder.pos_embed', *(f'backbone.{name}' for name in build('vit').no_weight_decay())}


def test_learned_positions_of_the_decoder():
    method = mae(decoder_pos_embed='learn')
    method(images_for(method)).loss.backward()
    assert method.decoder.pos_embed.grad.any()


@torch.no_grad()
@pytest.mark.parametrize('masking', ['random', 'block'])
def test_mask_units(masking):
    """Units of 2 x 3 patches of a grid of 4 x 6: whole units are masked, the others visible, as many in each sample."""
    method = mae(mask_ratio=0.5, mask_unit=(32, 48), masking=masking).eval()
    noise = torch.rand(method.noise_shape(50), generator=torch.Generator().manual_seed(0))
    mask = method.make_mask(noise)
    units = mask.unfold(1, 2, 2).unfold(2, 3, 3).flatten(3)  # (B, 2, 2, 6)
    assert mask.shape == (50, 4, 6) and torch.equal(units.any(-1), units.all(-1))
    assert (units.any(-1).flatten(1).sum(1) == 2).all() and method.num_visible == 12
    assert len(units.any(-1).flatten(1).unique(dim=0)) > 2
    images = images_for(method)
    drawn = method(images, noise=noise[:2])
    assert torch.equal(drawn.mask, mask[:2]) and drawn.prediction.shape == (2, 12, 768)
    torch.testing.assert_close(method(images, mask=mask[:2]).loss, drawn.loss)


def test_mask_unit_of_the_reference_count():
    assert mae(mask_ratio=0.75, mask_unit=32).num_visible == 4  # one of six units of four patches
    assert mae(mask_ratio=0.6, mask_unit=(16, 32), reference_count=True).num_visible == 8  # int(12 * 0.4) = 4 units


@pytest.mark.parametrize('mask_unit, message', [
    (48, 'mask_unit 48 does not fit image height 64 with patch stride 16: .* one of 16, 32, 64'),
    ((16, 24), 'mask_unit 24 does not fit image width 96 with patch stride 16: .* one of 16, 32, 48, 96'),
    (64, 'mask_unit 64 does not fit image width 96'),
    ((64, 96), 'mask_ratio 0.75 masks all 1 units'),
    ('x', 'mask_unit must be a positive number of pixels'),
])
def test_mask_units_that_do_not_fit(mask_unit, message):
    with pytest.raises(ValueError, match=message):
        mae(mask_unit=mask_unit)
