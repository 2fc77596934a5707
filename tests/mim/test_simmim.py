import copy

import pytest
import torch
import torch.nn as nn

import timm
from host_sync import NoHostSync
from timm.layers import set_fast_norm
from timm.mim import MIMOutput, SimMIM, create_mim, keyed_noise
from timm.mim.meta_run import dry_run
from timm.models.vision_transformer import VisionTransformer
from tiny_models import BUILDERS, build, images_for


def simmim(name='vit', mask_unit=16, **kwargs):
    return SimMIM(build(name, **kwargs), mask_unit=mask_unit)


def some_mask(method, batch_size=2, seed=2):
    grid = [size // stride for size, stride in zip(method.img_size, method.patch_stride)]
    return torch.rand(batch_size, *grid, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.fixture(params=BUILDERS)
def method(request):
    return simmim(request.param, mask_unit=32)


def test_shapes(method):
    images = images_for(method)
    output = method(images)
    height, width = (size // stride for size, stride in zip((64, 96), method.patch_stride))
    assert isinstance(output, MIMOutput)
    assert output.loss.shape == () and output.loss.isfinite()
    assert output.prediction.shape == output.target.shape == (2, 3, 64, 96)
    assert output.mask.shape == (2, height, width) and output.mask.dtype == torch.bool
    assert method.noise_shape(2) == (2, 6)
    assert torch.equal(output.target, images)


@pytest.mark.parametrize('name, patch_stride, encoder_stride', [
    ('vit', (16, 16), (16, 16)),
    ('vit_dynamic', (16, 16), (16, 16)),
    ('vit_rectangular_patch', (16, 8), (16, 8)),
    ('eva', (16, 16), (16, 16)),
    ('swin', (4, 4), (8, 8)),
])
def test_strides(name, patch_stride, encoder_stride):
    method = simmim(name)
    assert (method.patch_stride, method.encoder_stride) == (patch_stride, encoder_stride)


def test_every_trainable_parameter_gets_a_gradient(method):
    method(images_for(method)).loss.backward()
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    zero = [name for name, p in method.named_parameters() if p.requires_grad and not p.grad.any()]
    # a key bias moves all scores of a query alike, softmax does not see it
    assert [name for name in zero if not name.endswith('k_bias')] == []


@pytest.mark.parametrize('name, frozen', [
    ('vit', []),
    ('vit_distilled', []),
    ('vit_average_pool', ['fc_norm.weight', 'fc_norm.bias']),
    ('eva_average_pool', ['fc_norm.weight', 'fc_norm.bias']),
    ('swin', []),
])
def test_only_what_serves_the_classifier_is_frozen(name, frozen):
    backbone = simmim(name).backbone
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == frozen


def test_attention_pool_is_frozen_and_nothing_else():
    backbone = simmim('vit_attention_pool').backbone
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in backbone.named_parameters() if name.startswith('attn_pool.')}


def test_what_the_caller_froze_stays_frozen():
    backbone = build('vit')
    backbone.patch_embed.requires_grad_(False)
    method = SimMIM(backbone, mask_unit=16)
    assert [n for n, p in method.named_parameters() if not p.requires_grad] == [
        'backbone.patch_embed.proj.weight', 'backbone.patch_embed.proj.bias']


@pytest.mark.parametrize('name, model_kwargs', [
    ('vit_tiny_patch16_224', dict(depth=1)),
    ('vit_tiny_patch16_224', dict(depth=1, global_pool='avg')),
    ('vit_base_patch16_siglip_224', dict(depth=1, embed_dim=48, num_heads=2)),  # attention pooling
    ('vit_little_patch16_reg4_gap_256', dict(depth=1, embed_dim=48, num_heads=2)),
    ('deit_tiny_distilled_patch16_224', dict(depth=1)),
    ('eva02_tiny_patch14_224', dict(depth=1)),
    ('swin_tiny_patch4_window7_224', dict(depths=(1, 1), num_heads=(2, 2), embed_dim=24)),
])
@pytest.mark.parametrize('by_name', [True, False])
def test_encoder_loads_as_it_stands(tmp_path, name, model_kwargs, by_name):
    mask_unit = 28 if name.startswith('eva') else 32
    backbone = name if by_name else timm.create_model(name, num_classes=10, **model_kwargs)
    method = create_mim('simmim', backbone, mask_unit=mask_unit, model_kwargs=model_kwargs if by_name else None)
    path = tmp_path / 'encoder.pth'
    torch.save(method.backbone.state_dict(), path)
    encoder = timm.create_model(name, num_classes=0, checkpoint_path=path, **model_kwargs)  # strict
    images = images_for(method)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images), method.backbone.eval()(images))


def test_construction_leaves_no_trace_in_the_model():
    backbone = build('swin', num_classes=0)
    backbone.norm = nn.Sequential(backbone.norm, StatefulNorm(backbone.num_features))
    before = copy.deepcopy(backbone.state_dict())
    for training in (True, False):
        backbone.train(training)
        generator_state = torch.get_rng_state()
        dry_run(backbone, 3, (64, 96))
        assert torch.equal(torch.get_rng_state(), generator_state)
        SimMIM(backbone)
        assert all(module.training == training for module in backbone.modules())
        assert backbone.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
        assert all(parameter.grad is None for parameter in backbone.parameters())


class StatefulNorm(nn.BatchNorm2d):
    """Batch norm over (B, H, W, C), its running statistics would betray a forward pass."""

    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def test_construction_on_the_meta_device():
    with torch.device('meta'):
        method = create_mim('simmim', 'vit_giant_patch14_224', mask_unit=28)
    assert {parameter.device.type for parameter in method.parameters()} == {'meta'}
    assert method.encoder_stride == (14, 14)


def test_construction_with_a_tensor_that_is_no_buffer():
    class Cached(VisionTransformer):
        def forward_stages(self, x):
            return super().forward_stages(x + self.cached)

    model = Cached(img_size=32, embed_dim=24, depth=1, num_heads=2)
    model.cached = cached = torch.ones(24)
    assert SimMIM(model, mask_unit=16)(torch.randn(1, 3, 32, 32)).loss.isfinite()
    assert model.cached is cached


@pytest.mark.parametrize('name', ['simmim', 'mae', 'ijepa'])
def test_construction_with_fast_norm(name):
    """Which looks for the autocast of a device, and the meta device of the dry run has none."""
    set_fast_norm(True)
    backbone = timm.create_model('test_vit', img_size=64)
    set_fast_norm(False)
    method = create_mim(name, backbone, **(dict(num_targets=2) if name == 'ijepa' else {}))
    assert all(m._fast_norm for m in method.backbone.modules() if hasattr(m, '_fast_norm'))
    assert method(torch.rand(2, 3, 64, 64)).loss.isfinite()


def test_construction_with_gradient_checkpointing():
    backbone = build('vit')
    backbone.set_grad_checkpointing()
    method = SimMIM(backbone, mask_unit=16)
    assert backbone.grad_checkpointing
    assert all(p.requires_grad for p in method.parameters())


def test_mask_has_exactly_the_count_and_the_units(method):
    noise = torch.rand(method.noise_shape(50), generator=torch.Generator().manual_seed(0))
    mask = method(images_for(method, 50), noise=noise).mask
    pixels = method.pixel_mask(mask)
    assert pixels.shape == (50, 1, 64, 96)
    units = pixels.reshape(50, 2, 32, 3, 32).float().mean((2, 4)).flatten(1)
    assert set(units.unique().tolist()) == {0., 1.}  # whole units
    assert (units.sum(1) == 4).all()  # ceil(6 * 0.6)
    rank = noise.argsort(1).argsort(1)  # the smallest noise is masked, units in row-major order
    assert torch.equal(units.bool(), rank < 4)


def test_generator_and_default_generator():
    method = simmim()
    images = images_for(method)
    first = method(images, generator=torch.Generator().manual_seed(5)).mask
    assert torch.equal(method(images, generator=torch.Generator().manual_seed(5)).mask, first)
    torch.manual_seed(5)
    assert torch.equal(method(images).mask, first)
    assert not torch.equal(method(images).mask, first)


def test_keyed_masks_do_not_depend_on_how_a_batch_is_split():
    method = simmim().eval()
    images = images_for(method, 4)
    size = method.noise_shape(4)[1]
    whole = method(images, noise=keyed_noise(0, 7, torch.arange(4), size)).mask
    parts = [
        method(images[rank::2], noise=keyed_noise(0, 7, torch.arange(rank, 4, 2), size)).mask for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


@torch.no_grad()
def test_given_masks_may_differ_in_count_and_be_flat():
    method = simmim().eval()
    images = images_for(method, 3)
    mask = torch.zeros(3, 4, 6, dtype=torch.bool)
    mask[1, 0, 0] = True
    mask[2] = True
    output = method(images, mask=mask)
    flat = method(images, mask=mask.flatten(1))
    assert torch.equal(output.mask, mask) and torch.equal(flat.mask, mask)
    assert torch.equal(output.loss, flat.loss)
    assert torch.equal(method.reconstruct(images, mask), output.prediction)
    # every sample by itself, the loss is a mean over all masked pixels
    errors = (output.prediction - images).abs().mean(1)  # (B, H, W)
    expected = (errors[1, :16, :16].sum() + errors[2].sum()) / (16 * 16 + 64 * 96)
    assert torch.allclose(output.loss, expected, rtol=1e-5)


@torch.no_grad()
def test_masked_pixels_are_not_seen(method):
    method.eval()
    images, mask = images_for(method), some_mask(method)
    pixels = method.pixel_mask(mask)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(method.reconstruct(other, mask), method.reconstruct(images, mask))
    seen = torch.where(pixels, images, torch.randn_like(images))
    assert not torch.equal(method.reconstruct(seen, mask), method.reconstruct(images, mask))


@torch.no_grad()
def test_whole_image_masked_gives_one_answer(method):
    method.eval()
    images = images_for(method, 2)
    prediction = method.reconstruct(images, torch.ones_like(some_mask(method)))
    assert torch.equal(prediction[0], prediction[1])


@torch.no_grad()
@pytest.mark.parametrize('name', ['vit', 'vit_dynamic', 'vit_rectangular_patch', 'eva'])
def test_mask_token_comes_before_positions(name):
    # were it inserted after positions, all masked places of a wholly masked image would look alike
    method = simmim(name).eval()
    prediction = method.reconstruct(images_for(method, 1), torch.ones_like(some_mask(method, 1)))
    height, width = method.encoder_stride
    cells = prediction.unfold(2, height, height).unfold(3, width, width)  # (1, C, H', W', height, width)
    cells = cells.permute(2, 3, 0, 1, 4, 5).flatten(2).flatten(0, 1)
    distance = torch.cdist(cells, cells) + torch.eye(len(cells))
    assert distance.min() > 1e-3


@torch.no_grad()
def test_tokens_that_enter_the_blocks():
    method = simmim('vit_registers').eval()
    images, mask = images_for(method), some_mask(method)
    vit = method.backbone
    seen = []
    vit.norm_pre.register_forward_hook(lambda module, args, output: seen.append(output))
    method.reconstruct(images, mask)
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
    weight = mask.flatten(1).unsqueeze(-1).float()
    patches = patches * (1 - weight) + method.mask_token * weight + vit.pos_embed
    prefix = torch.cat([vit.cls_token, vit.reg_token], 1).expand(2, -1, -1)
    assert torch.equal(seen[0], torch.cat([prefix, patches], 1))


def test_prediction_of_visible_pixels_does_not_matter():
    method = simmim('swin')
    images, mask = images_for(method), some_mask(method)
    pixels = method.pixel_mask(mask).expand(-1, 3, -1, -1)
    retained = []
    method.decoder.register_forward_hook(lambda module, args, output: retained.append(output))
    output = method(images, mask=mask)
    gradient, = torch.autograd.grad(output.loss, retained)
    assert not gradient[~pixels].any()
    # d|x| is a sign, each masked pixel weighs the same
    magnitude = 1 / (pixels[:, 0].sum() + 1e-5) / 3
    assert torch.allclose(gradient[pixels].abs(), magnitude.expand(int(pixels.sum())), rtol=1e-5)


@pytest.mark.parametrize('name', ['vit', 'vit_dynamic', 'eva', 'swin'])
@pytest.mark.parametrize('in_chans', [1, 4])
def test_channels(name, in_chans):
    method = simmim(name, in_chans=in_chans)
    images = images_for(method)
    output = method(images)
    assert images.shape[1] == in_chans and output.prediction.shape == (2, in_chans, 64, 96)
    output.loss.backward()
    assert method.decoder.proj.out_channels == in_chans * method.encoder_stride[0] * method.encoder_stride[1]


@torch.no_grad()
def test_another_image_size_where_the_model_takes_it():
    method = simmim('vit_dynamic').eval()
    for height, width in ((32, 48), (96, 64), (64, 96)):
        output = method(torch.randn(2, 3, height, width))
        assert output.prediction.shape == (2, 3, height, width)
        assert output.mask.shape == (2, height // 16, width // 16)
        assert method.noise_shape(2, (height, width)) == (2, height * width // 256)


def test_model_built_for_any_size_uses_the_size_asked_for():
    method = SimMIM(build('vit_dynamic'), img_size=(32, 48), mask_unit=16)
    assert method.img_size == (32, 48) and method.noise_shape(1) == (1, 6)


def test_bfloat16_autocast_computes_the_loss_in_float32():
    method = simmim('swin')
    images, mask = images_for(method), some_mask(method)
    with torch.autocast('cpu', torch.bfloat16):
        output = method(images, mask=mask)
    assert output.loss.dtype == output.prediction.dtype == torch.float32
    exact = ((output.prediction - images).abs() * method.pixel_mask(mask)).double().sum()
    assert output.loss.item() == pytest.approx((exact / method.pixel_mask(mask).sum() / 3).item(), rel=1e-5)
    # bfloat16 has eight bits, against the same in float32
    assert output.loss.item() == pytest.approx(method(images, mask=mask).loss.item(), rel=2e-2)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_mask_token_takes_the_type_of_the_tokens(monkeypatch):
    method = simmim()
    embed_positions, seen = method.backbone.embed_positions, []
    monkeypatch.setattr(
        method.backbone, 'embed_positions', lambda patches: seen.append(patches.dtype) or embed_positions(patches))
    with torch.autocast('cpu', torch.bfloat16):
        method(images_for(method))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize('name', ['vit', 'swin'])
def test_float16_autocast_is_finite(name):
    method = simmim(name)
    with torch.autocast('cpu', torch.float16):
        output = method(images_for(method) * 100)
    assert output.loss.isfinite() and output.loss.dtype == torch.float32


@pytest.mark.parametrize('name', ['vit', 'vit_dynamic', 'eva', 'swin'])
def test_compiles_as_one_graph(name):
    method = simmim(name).eval()
    images, noise = images_for(method), torch.rand(method.noise_shape(2))
    compiled = torch.compile(method, fullgraph=True, backend='eager')
    output, expected = compiled(images, noise=noise), method(images, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(output[:4], expected[:4]))


@pytest.mark.parametrize('name', ['vit_registers', 'swin'])
def test_a_step_never_waits_for_the_device(name):
    method = simmim(name)
    images = images_for(method)
    with NoHostSync():
        noise = keyed_noise(0, 1, torch.arange(2), method.noise_shape(2)[1])
        method(images, noise=noise).loss.backward()
        method(images).loss.backward()
    with NoHostSync(), pytest.raises(AssertionError):
        images[images > 0]
    with NoHostSync(), pytest.raises(AssertionError):
        images.sum().item()


def test_a_fixed_batch_is_learnt():
    method = simmim('swin')
    images, mask = images_for(method) * 0.1 + 1., some_mask(method)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = method(images, mask=mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_mask_token_initialisation():
    torch.manual_seed(0)
    method = SimMIM(build('vit', embed_dim=768), mask_unit=16)
    assert method.mask_token.shape == (1, 1, 768)
    assert method.mask_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert method.mask_token.abs().max() < 0.02 * 5


def test_parameters_without_weight_decay_are_the_models():
    assert simmim().no_weight_decay() == {f'backbone.{name}' for name in build('vit').no_weight_decay()}
    names = {name for name, _ in simmim('swin').named_parameters()}
    assert not {'mask_token', 'decoder.proj.weight'} & simmim('swin').no_weight_decay() and 'mask_token' in names
