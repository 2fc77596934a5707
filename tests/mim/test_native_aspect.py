"""MAE and SimMIM on NaFlex batches: images of several shapes, as sequences of patches with padding."""
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from tiny_models import build, images_for

from timm.mim import MAE, IJEPA, MIMUnsupportedError, SimMIM, create_mim, patchify
from timm.mim.decoder import MaskedDecoder, sincos_position_embedding
from timm.mim.native_aspect import NaFlexBatch, naflex_images, share_masked, smallest_units
from timm.mim.visualize import save_views
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

SHAPES = [(2, 10), (6, 3), (4, 4), (1, 5), (5, 1)]  # grids of patches
MODELS = {
    'class_token': dict(class_token=True),
    'factorized': dict(pos_embed='factorized', reg_tokens=2),
    'grid_sample': dict(pos_embed_use_grid_sample=True),
    'axial_rope': dict(pos_embed='none', rope_type='axial', reg_tokens=2),
    'mixed_rope': dict(pos_embed='none', rope_type='mixed', attn_type='rope'),
}
METHODS = {
    'mae': (MAE, dict(decoder_dim=24, decoder_depth=2, decoder_heads=2)),
    'mae_pixels': (MAE, dict(decoder_dim=24, decoder_depth=1, decoder_heads=2, norm_pix=False, mask_ratio=0.6)),
    'simmim': (SimMIM, dict(mask_unit=16)),
    'simmim_units': (SimMIM, dict(mask_unit=32, target='normalized_pixels', loss='smooth_l1')),
}
PAIRS = [
    ('class_token', 'mae'), ('factorized', 'simmim'), ('grid_sample', 'mae_pixels'), ('axial_rope', 'simmim_units'),
    ('mixed_rope', 'mae'), ('mixed_rope', 'simmim'), ('axial_rope', 'mae')]


def create(model, method, depth=2, **options):
    torch.manual_seed(0)
    backbone = NaFlexVit(NaFlexVitCfg(
        patch_size=16, embed_dim=24, depth=depth, num_heads=2, global_pool='avg', pos_embed_grid_size=(4, 6),
        **MODELS[model]))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    cls, defaults = METHODS[method]
    return cls(backbone, **{'img_size': (64, 96), **defaults, **options})


def batch_of(images, length, filling=0., side=16):
    """The dict of timm's NaFlex collator."""
    patches = torch.full((len(images), length, 3 * side * side), filling)
    coord = torch.zeros(len(images), length, 2, dtype=torch.int64)
    valid = torch.zeros(len(images), length, dtype=torch.bool)
    for i, image in enumerate(images):
        height, width = image.shape[1] // side, image.shape[2] // side
        patches[i, :height * width] = patchify(image[None], (side, side))[0]
        coord[i, :height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
        valid[i, :height * width] = True
    return dict(patches=patches, patch_coord=coord, patch_valid=valid, seq_len=length)


def some_images(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 16 * height, 16 * width, generator=generator) for height, width in shapes]


def noise_of(length, count=len(SHAPES), seed=3):
    return torch.rand(count, 40, generator=torch.Generator().manual_seed(seed))[:, :length]


def gradients(method, output):
    method.zero_grad()
    output.loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('model, name', PAIRS)
def test_images_of_one_size_equal_the_path_of_images(model, name):
    """Bitwise where the order of additions is the same: the mask and the target. Sums have another order."""
    method = create(model, name)
    images = torch.stack(some_images([(4, 6)] * 3))
    noise = torch.rand(method.noise_shape(3), generator=torch.Generator().manual_seed(2))
    mask = method.make_mask(noise)
    expected = method(images, mask=mask)
    found = method(batch_of(images, 24), mask=mask.flatten(1))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7)
    grads, others = gradients(method, expected), gradients(method, found)
    assert grads.keys() == others.keys()
    for key, grad in grads.items():
        assert (grad - others[key]).abs().max() <= 1e-6 * max(1., grad.abs().max()), key
    if isinstance(method, MAE):
        assert torch.equal(found.target, expected.target)
        drawn = method(batch_of(images, 24), noise=noise)
        assert torch.equal(drawn.mask, mask.flatten(1))  # the same noise gives the same mask


@pytest.mark.parametrize('model, name', PAIRS)
def test_garbage_in_the_padding_changes_no_bit(model, name):
    method = create(model, name)
    batch, dirty = (batch_of(some_images(), 24, filling) for filling in (0., math.nan))
    dirty['patch_coord'][~dirty['patch_valid']] = 77
    noise = noise_of(24)
    clean, output = method(batch, noise=noise), method(dirty, noise=noise)
    assert clean.loss.isfinite() and torch.equal(clean.loss, output.loss) and torch.equal(clean.mask, output.mask)
    grads, others = gradients(method, clean), gradients(method, output)
    assert all(torch.equal(grad, others[key]) for key, grad in grads.items())


@pytest.mark.parametrize('model, name', PAIRS)
def test_the_length_of_the_padding_changes_no_bit(model, name):
    """Neither the loss nor a gradient; other garbage stands in each of the paddings."""
    method = create(model, name)
    outputs = []
    for length, filling in ((20, 0.), (37, math.nan), (24, 7.)):
        outputs.append(method(batch_of(some_images(), length, filling), noise=noise_of(length)))
    short, *longer = outputs
    grads = gradients(method, short)
    for output in longer:
        assert torch.equal(output.loss, short.loss)
        assert torch.equal(output.mask[:, :20], short.mask) and not output.mask[:, 20:].any()
        count = short.prediction.shape[1]  # of the masked patches, or of all
        assert torch.equal(output.prediction[:, :count], short.prediction)
        assert output.prediction.shape[1] == (count if isinstance(method, MAE) else output.mask.shape[1])
        others = gradients(method, output)
        assert all(torch.equal(grad, others[key]) for key, grad in grads.items())
    for length in (20, 37):
        batch = batch_of(some_images(), length)
        mask = F.pad(short.mask, (0, length - 20)) | ~batch['patch_valid']  # padding is never masked
        given = method(batch, mask=mask)
        assert torch.equal(given.loss, short.loss) and torch.equal(given.mask, outputs[length > 20].mask)


@pytest.mark.parametrize('model, name', PAIRS)
def test_each_image_by_itself(model, name):
    """The loss of a batch is the mean over all masked patches of the losses of its images, each without padding."""
    method = create(model, name)
    images, noise = some_images(), noise_of(24)
    output = method(batch_of(images, 24), noise=noise)
    total = count = 0
    for i, image in enumerate(images):
        length = image.shape[1] * image.shape[2] // 256
        alone = method(batch_of([image], length), noise=noise[i:i + 1, :length])
        assert torch.equal(alone.mask[0], output.mask[i, :length])
        total, count = total + alone.loss * alone.mask.sum(), count + alone.mask.sum()
    torch.testing.assert_close(output.loss, total / count, rtol=2e-6, atol=0)
    assert method.count_masked(batch_of(images, 24), noise) == count


@pytest.mark.parametrize('model, name', PAIRS)
def test_masked_means_masked_in_each_image(model, name):
    """Other pixels in masked patches change neither the prediction nor what the model receives."""
    method = create(model, name)
    batch, noise = batch_of(some_images(), 24), noise_of(24)
    seen = method(batch, noise=noise)
    other = {**batch, 'patches': torch.where(seen.mask[..., None], math.inf, batch['patches'])}
    assert torch.equal(method(other, mask=seen.mask).prediction, method(batch, mask=seen.mask).prediction)
    visible = {**batch, 'patches': torch.where(seen.mask[..., None], batch['patches'], batch['patches'] + 1)}
    assert not torch.equal(method(visible, noise=noise).prediction, seen.prediction)
    # and only visible patches of the same image count
    first = batch['patches'].clone()
    first[0] += 1
    changed = method({**batch, 'patches': first}, mask=seen.mask).prediction
    kept = method(batch, mask=seen.mask).prediction
    assert torch.equal(changed[1:], kept[1:]) and not torch.equal(changed[0], kept[0])


@pytest.mark.parametrize('ratio', [0.75, 0.6, 0.55, 0.9])
def test_counts_are_exact_for_each_image(ratio):
    method = create('class_token', 'mae', mask_ratio=ratio)
    output = method(batch_of(some_images(), 24), noise=noise_of(24))
    for mask, (height, width) in zip(output.mask, SHAPES):
        expected = math.ceil(height * width * Fraction(str(ratio)))
        assert mask.sum() == min(expected, height * width - 1)  # one patch stays visible


def test_every_hundredth_of_every_count():
    counts = torch.arange(1, 401)
    for hundredths in range(1, 100):
        expected = [min(-(-n * hundredths // 100), n - 1) for n in range(1, 401)]
        assert share_masked(counts, hundredths / 100).tolist() == expected
    assert [share_masked(n, 0.55) for n in (1, 2, 100)] == [0, 1, 55]


def test_units_at_the_border():
    """A grid of 3 x 5 patches has 2 x 3 units of 2 x 2 patches, of which those at the border are smaller."""
    method = create('class_token', 'simmim', mask_unit=32, mask_ratio=0.5)
    batch = method.read_naflex(batch_of(some_images([(3, 5), (1, 7), (2, 2)]), 20))
    for seed in range(20):
        mask = method.make_naflex_mask(torch.rand(3, 20, generator=torch.Generator().manual_seed(seed)), batch)
        for i, (height, width, units) in enumerate([(3, 5, 3), (1, 7, 2), (2, 2, 0)]):
            grid = mask[i, :height * width].view(1, 1, height, width).float()
            smallest, largest = (
                F.max_pool2d(sign * grid, 2, ceil_mode=True) * sign for sign in (-1, 1))
            assert torch.equal(smallest, largest) and largest.sum() == units  # whole units, in an exact number
            assert not mask[i, height * width:].any()


def test_units_that_are_not_square():
    """Units of 3 x 2 patches in a grid of 4 x 5: two rows of three units, those at the border smaller."""
    method = create('class_token', 'simmim', mask_unit=(48, 32), mask_ratio=0.5, img_size=(96, 96))
    batch = method.read_naflex(batch_of(some_images([(4, 5)]), 21))
    for seed in range(10):
        mask = method.make_naflex_mask(noise_of(21, 1, seed), batch)[0, :20].view(4, 5)
        units = [part.flatten() for rows in mask.split(3) for part in rows.split(2, dim=1)]
        assert len(units) == 6 and sum(unit.all() for unit in units) == 3 == sum(unit.any() for unit in units)


def test_units_of_mae():
    method = create('class_token', 'mae', mask_unit=32, mask_ratio=0.75)
    output = method(batch_of(some_images([(3, 5), (4, 4)]), 20), noise=noise_of(20, 2))
    assert output.loss.isfinite()
    grid = output.mask[1, :16].view(2, 2, 2, 2).transpose(1, 2).flatten(2)
    assert torch.equal(grid.all(-1), grid.any(-1)) and grid.all(-1).sum() == 3  # of 4 whole units
    assert 15 - output.mask[0].sum() in (1, 2, 4)  # one of 6 units stays visible; those at the border are smaller


def test_all_units_are_masked_equally_often():
    batch = NaFlexBatch(None, *(batch_of(some_images([(3, 5)]), 16)[name] for name in ('patch_coord', 'patch_valid')))
    batch = NaFlexBatch(None, batch.coord.expand(4000, -1, -1), batch.valid.expand(4000, -1))
    noise = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0))
    share = smallest_units(noise, batch, (2, 2), 0.5, of_masked=True).float().mean(0)[:15]
    assert (share - 0.5).abs().max() < 0.05  # six standard deviations


def test_positions_of_a_grid_are_those_of_its_coordinates():
    decoder = MaskedDecoder((3, 5), 24, 1, 2, num_prefix_tokens=1)
    coord = torch.cartesian_prod(torch.arange(3), torch.arange(5)).expand(2, -1, -1)
    assert torch.equal(decoder.embed_coordinates(coord), decoder.pos_embed.expand(2, -1, -1))
    tokens = torch.randn(2, 16, 24)
    mask = torch.rand(2, 15) < 0.5
    assert torch.equal(decoder(tokens, mask=mask, coord=coord), decoder(tokens, mask=mask))
    # a patch has the same position in every image, and an image may be longer than any grid of the decoder
    wide = decoder.embed_coordinates(torch.tensor([[[0, 0], [1, 900]]]).expand(1, 2, 2).repeat(1, 500, 1))
    assert torch.equal(wide[0, 2], torch.cat([
        sincos_position_embedding((1, 901), 24)[-1, :12], sincos_position_embedding((2, 1), 24)[-1, 12:]]))
    with pytest.raises(ValueError, match="^The decoder learned positions for one grid, pos_embed='learn'"):
        MaskedDecoder((3, 5), 24, 1, 2, pos_embed='learn').embed_coordinates(coord)


def test_gradient_checkpointing():
    method = create('class_token', 'mae')
    batch, noise = batch_of(some_images(), 24), noise_of(24)
    expected = gradients(method, method(batch, noise=noise))
    method.set_grad_checkpointing()
    assert all(torch.equal(grad, expected[key]) for key, grad in gradients(method, method(batch, noise=noise)).items())


@pytest.mark.parametrize('name', ['mae', 'simmim'])
def test_a_compiled_method_has_as_many_graphs_as_lengths(name):
    """Whatever the shapes of the images: no graph break, and no further graph once each length was seen. The padding
    stays, so sums have another order than without a compiler, and garbage in it changes no bit there either.
    """
    torch._dynamo.reset()
    counters.clear()
    method = create('grid_sample', name, depth=1)
    compiled = torch.compile(method, backend='eager', dynamic=False)
    numbers = []
    for shapes in (SHAPES, [(3, 6), (5, 4), (2, 2), (4, 4), (1, 19)]):
        for length in (20, 37):
            batch, noise = batch_of(some_images(shapes), length), noise_of(length)
            output, expected = compiled(batch, noise=noise), method(batch, noise=noise)
            assert torch.equal(output.mask, expected.mask)
            torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=0)
            dirty = compiled(batch_of(some_images(shapes), length, math.nan), noise=noise)
            assert torch.equal(dirty.loss, output.loss)
            numbers.append(counters['stats']['unique_graphs'])
    assert numbers == [1, 2, 2, 2] and not counters['graph_break']


@pytest.mark.parametrize('name', ['mae', 'mae_pixels', 'simmim'])
def test_views_have_the_shapes_of_the_images(name, tmp_path):
    method = create('class_token', name).eval()
    images = some_images()
    views = method.views(batch_of(images, 24), noise_of(24))
    for view in views:
        assert [tuple(image.shape) for image in view.images] == [tuple(image.shape) for image in images]
    third = 'visible + prediction' + ('' if method.reconstructs_pixels else ' (true mean, variance)')
    assert [view.label for view in views] == ['original', 'masked input', third]
    assert all(torch.equal(image, other) for image, other in zip(views[0].images, images))
    output = method(batch_of(images, 24), noise=noise_of(24))
    for i, (image, hole, shown) in enumerate(zip(images, views[1].hole, views[2].images)):
        assert torch.equal(image[:, ~hole[0]], shown[:, ~hole[0]])
        masked = patchify(hole[None], (16, 16))[0, :, 0]
        hidden, true = (patchify(pixels[None], (16, 16))[0, masked] for pixels in (shown, image))
        predicted = output.prediction[i, :len(hidden)] if name != 'simmim' else output.prediction[i, output.mask[i]]
        if not method.reconstructs_pixels:
            predicted = predicted * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        torch.testing.assert_close(hidden, predicted, rtol=0, atol=1e-5)
    save_views(tmp_path / 'views.png', views, (0.5,) * 3, (0.5,) * 3)


def test_images_from_patches():
    method = create('class_token', 'mae')
    images = some_images()
    batch = method.read_naflex(batch_of(images, 24, math.nan))
    assert all(torch.equal(a, b) for a, b in zip(naflex_images(batch.patches, batch, (16, 16)), images))


def test_a_truncated_batch_is_an_error():
    method = create('class_token', 'mae')
    batch = batch_of(some_images(), 24)
    cut = {name: value[:, :14] for name, value in batch.items() if name != 'seq_len'}
    with pytest.raises(ValueError, match=(
            '^Image 0 of the NaFlex batch has 14 valid patches that are not the whole grid of 2 x 10 patches .* the '
            'sequence was truncated')):
        method(cut)
    for broken in ('moved', 'hole', 'empty'):
        other = {name: value.clone() for name, value in batch.items() if name != 'seq_len'}
        if broken == 'moved':
            other['patch_coord'][2, [0, 1]] = other['patch_coord'][2, [1, 0]]
        other['patch_valid'][2, 3 if broken == 'hole' else slice(0)] = False
        if broken == 'empty':
            other['patch_valid'][2] = False
        with pytest.raises(ValueError, match='^Image 2 of the NaFlex batch'):
            method(other)


def test_refusals():
    batch, vit = batch_of(some_images(), 24), dict(decoder_dim=24, decoder_depth=1, decoder_heads=2)

    def refused(method, reason):
        with pytest.raises(MIMUnsupportedError, match=reason):
            method(batch)
    refused(MAE(build('vit'), (64, 96), **vit), 'the model is a VisionTransformer, not a NaFlexVit.*use_naflex=True')
    refused(create('class_token', 'mae', masking='block'), "masking 'block' draws blocks on one grid")
    refused(create('class_token', 'mae', decoder_pos_embed='learn'), "decoder_pos_embed 'learn' has positions of one")
    refused(create('class_token', 'mae', reference_count=True), 'reference_count')
    refused(create('class_token', 'mae', decoder='cross'), "decoder 'cross' works on one grid")
    refused(create('class_token', 'simmim', target='hog'), "target 'hog' needs images of one size")
    refused(IJEPA(build('naflex'), (64, 96), predictor_dim=24, predictor_depth=1), 'I-JEPA have one shape')
    method = create('class_token', 'mae')
    patches = torch.zeros(5, 24, 8, 8, 3)
    with pytest.raises(MIMUnsupportedError, match='several patch sizes are not supported'):
        method({**batch, 'patches': patches})
    for bad, message in (
            (dict(patch_valid=None), 'patch_valid is missing'),
            (dict(patches=patches.flatten(2)), r'shape \(B, N, 768\)'),
            (dict(patch_coord=batch['patch_coord'].int()), 'patch_coord must be int64'),
            (dict(patch_valid=batch['patch_valid'].float()), 'patch_valid must be bool')):
        with pytest.raises(ValueError, match=message):
            method({**batch, **bad})
    with pytest.raises(ValueError, match='at least one patch of each image'):
        method(batch, mask=torch.ones(5, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'noise must have shape \(5, 24\)'):
        method(batch, noise=noise_of(20))


def test_square_patches_of_the_loader():
    """The loader with several patch sizes has a dimension for each side; the size of the model works."""
    method = create('class_token', 'mae')
    batch, noise = batch_of(some_images(), 24), noise_of(24)
    square = {**batch, 'patches': batch['patches'].view(5, 24, 16, 16, 3)}
    assert torch.equal(method(square, noise=noise).loss, method(batch, noise=noise).loss)


@pytest.mark.parametrize('name, side', [('test_vit', 16), ('eva02_tiny_patch14_224', 14)])
def test_a_classic_model_built_as_naflexvit(name, side):
    method = create_mim('mae', name, model_kwargs=dict(use_naflex=True, depth=2), **METHODS['mae'][1])
    images = [torch.randn(3, side * height, side * width) for height, width in SHAPES]
    output = method(batch_of(images, 24, side=side), noise=noise_of(24))
    output.loss.backward()
    missing = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert output.loss.isfinite() and not missing  # DistributedDataParallel would wait for them


def test_a_method_takes_images_as_well():
    method = create('class_token', 'mae')
    assert method(images_for(method)).mask.shape == (2, 4, 6)
