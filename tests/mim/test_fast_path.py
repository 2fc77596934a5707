"""The shortcuts give the loss and the gradients of the plain path, and are shorter."""
import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from timm.mim import IJEPA, MAE, SimMIM
from timm.mim.fast_path import embeds_patches, run_blocks
from timm.mim.masking import upsample_mask
from timm.models.vision_transformer import Block, ParallelScalingBlock
from tiny_models import BUILDERS, TOKEN_DROPPING_BUILDERS, build, images_for

SMALL = dict(
    mae=dict(decoder_dim=24, decoder_depth=2, decoder_heads=2),
    ijepa=dict(predictor_dim=24, predictor_depth=2),
)
EMBED_PATCHES = {
    'vit', 'vit_average_pool', 'vit_attention_pool', 'vit_registers', 'vit_dynamic', 'vit_rectangular_patch'}
PLAIN = ('vit', 'vit_average_pool', 'vit_registers', 'vit_dynamic', 'vit_rectangular_patch')
CASES = [
    *(('mae', name) for name in (*PLAIN, 'vit_pre_norm', 'vit_distilled', 'eva', 'hiera')),
    *(('ijepa', name) for name in ('vit_registers', 'vit_dynamic', 'vit_rectangular_patch', 'eva')),
    *(('simmim', name) for name in (*PLAIN, 'vit_pre_norm', 'vit_distilled', 'eva', 'swin')),
]


def create(method, name, target='pixels', loss='l1', **kwargs):
    options = SMALL.get(method, dict(target=target, loss=loss))
    backbone = build(name, **kwargs)
    torch.manual_seed(3)
    method = dict(mae=MAE, ijepa=IJEPA, simmim=SimMIM)[method](backbone, img_size=(64, 96), **options)
    with torch.no_grad():
        for parameter in method.parameters():  # biases begin as zeros
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method


def step(method, fast_path, **autocast):
    """Output, gradients by name and number of floating point operations of a step."""
    images = (images_for(method) * 2 + 1).to(next(method.parameters()).dtype)
    noise = torch.rand(method.noise_shape(2), generator=torch.Generator().manual_seed(4))
    method.fast_path = fast_path
    method.zero_grad()
    torch.manual_seed(5)  # stochastic depth
    with FlopCounterMode(display=False) as counter:
        with torch.autocast('cpu', torch.bfloat16, enabled=bool(autocast)):
            output = method(images, noise=noise)
        output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return output, gradients, counter.get_total_flops()


def assert_equal_steps(method, loss_tolerance=1e-6, tolerance=1e-5):
    plain, plain_gradients, plain_flops = step(method, False)
    fast_path, fast_gradients, fast_flops = step(method, True)
    assert fast_path.loss.item() == pytest.approx(plain.loss.item(), rel=loss_tolerance)
    assert torch.equal(fast_path.mask, plain.mask) and fast_path.loss.dtype == plain.loss.dtype == (
        torch.float64 if next(method.parameters()).dtype == torch.float64 else torch.float32)
    assert fast_gradients.keys() == plain_gradients.keys()
    largest = max(gradient.norm() for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        # a key's bias has no gradient but rounding errors, hence the second term
        difference = (fast_gradients[name] - gradient).norm()
        assert difference <= tolerance * gradient.norm() + 1e-7 * largest, name
    assert fast_flops < plain_flops
    return plain, fast_path


@pytest.mark.parametrize('method, name', CASES)
def test_loss_and_gradients_are_those_of_the_plain_path(method, name):
    method = create(method, name)
    plain, fast_path = assert_equal_steps(method)
    expected_prediction, expected_target = plain.prediction, plain.target
    if isinstance(method, SimMIM):
        # masked pixels cell by cell, (row, column, channel)
        pixels = upsample_mask(plain.mask, method.patch_stride).unsqueeze(-1).flatten(1, 2)

        def cells(images):
            rows, columns = method.encoder_stride
            x = images.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 3, 5, 1)
            return x.flatten(1, 2).flatten(2)

        masked = cells(pixels.view(2, 1, 64, 96)).all(-1)
        expected_prediction, expected_target = (
            cells(x)[masked].unflatten(0, (2, -1)) for x in (expected_prediction, expected_target))
    torch.testing.assert_close(fast_path.prediction, expected_prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast_path.target, expected_target, rtol=0, atol=0)


@pytest.mark.parametrize('name, target, loss', [
    ('vit', 'hog', 'l2'), ('swin', 'hog', 'smooth_l1'), ('vit', 'normalized_pixels', 'l2')])
def test_other_targets(name, target, loss):
    plain, fast_path = assert_equal_steps(create('simmim', name, target, loss))
    assert fast_path.target.numel() < plain.target.numel()


def test_which_models_embed_patch_by_patch():
    names = {name for name in {**BUILDERS, **TOKEN_DROPPING_BUILDERS} if embeds_patches(build(name))}
    assert names == EMBED_PATCHES
    assert not embeds_patches(build('vit', pos_drop_rate=0.1))


@pytest.mark.parametrize('options', [
    dict(init_values=0.5, qk_norm=True, scale_attn_norm=True, drop_path_rate=0.5),
    dict(qkv_bias=False, in_chans=1, pos_embed='none'),
    dict(block_fn=ParallelScalingBlock),
    dict(attn_layer='diff', num_heads=1)])
@pytest.mark.parametrize('method', ['mae', 'simmim'])
def test_blocks(method, options):
    assert_equal_steps(create(method, 'vit', **options))


@pytest.mark.parametrize('method', ['mae', 'ijepa', 'simmim'])
def test_checkpointing(method):
    method = create(method, 'vit')
    plain, _, _ = step(method, False)
    method.set_grad_checkpointing()
    _, gradients, _ = step(method, False)
    fast_path, fast_gradients, _ = step(method, True)
    assert fast_path.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', ['mae', 'ijepa', 'simmim'])
def test_mixed_precision(method):
    method = create(method, 'vit')
    exact, _, _ = step(method, False)
    fast_path, _, _ = step(method, True, bfloat16=True)
    plain, _, _ = step(method, False, bfloat16=True)
    assert fast_path.loss.dtype == torch.float32
    # bfloat16 has 8 bits, the mean over some thousand values is better than that
    assert fast_path.loss.item() == pytest.approx(exact.loss.item(), rel=1e-2)
    assert fast_path.loss.item() == pytest.approx(plain.loss.item(), rel=5e-3)


class Adapted(nn.Linear):
    """A layer as adapters replace it: its weight is not all that it does."""

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


def test_a_changed_layer_is_not_passed_by():
    method = create('simmim', 'vit')
    attention = method.backbone.blocks[-1].attn
    attention.qkv = Adapted(24, 72)
    assert_equal_steps(method.double(), tolerance=1e-10)  # it adds large sums, which float32 rounds


def test_units_smaller_than_a_cell_take_the_plain_path():
    backbone = build('swin')  # stride 8
    method = SimMIM(backbone, img_size=(64, 96), mask_unit=4)
    output, _, _ = step(method, True)
    assert output.prediction.shape == (2, 3, 64, 96)


@pytest.mark.parametrize('method', ['mae', 'ijepa', 'simmim'])
def test_other_pixels_are_not_read(method):
    """What a mask hides may be anything, infinity included."""
    method = create(method, 'vit').eval()
    method.fast_path = True
    images = images_for(method)
    noise = torch.rand(method.noise_shape(2))
    output = method(images, noise=noise)
    hidden = torch.where(method.pixel_mask(output.mask), torch.inf, images)
    with torch.no_grad():
        assert torch.equal(method(hidden, noise=noise).prediction, output.prediction)


@pytest.mark.parametrize('sets', [1, 4])
def test_products_of_the_blocks(sets):
    """Multiplications of the linear layers by hand: the first block projects each token once, the last the masked."""
    width, images, seen, masked, places = 24, 3, 5, 7, 12
    rows, tokens = images * sets, seen + masked
    blocks = nn.Sequential(*(Block(width, 2) for _ in range(3)))
    indices = torch.stack([torch.randperm(places)[:masked] for _ in range(rows)])
    with FlopCounterMode(display=False) as counter:
        run_blocks(blocks, torch.randn(images, seen, width), torch.randn(places, width), indices)
    counts = counter.get_flop_counts()['Global']
    linear = sum(count for operation, count in counts.items() if 'mm' in str(operation))

    after_attention = 1 + 4 + 4  # projection and the two layers of the MLP, in squares of the width
    first = 3 * (images * seen + places) + after_attention * rows * tokens
    middle = (3 + after_attention) * rows * tokens
    last = (1 + after_attention) * rows * masked + 2 * rows * tokens
    assert linear == 2 * width ** 2 * (first + middle + last)
