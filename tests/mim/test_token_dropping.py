"""What MAE and I-JEPA ask of every model that they claim: one per class and branch, each method."""
import pytest
import torch

from host_sync import NoHostSync
from timm.mim import IJEPA, MAE, create_mim, keyed_noise
from timm.mim.backbone import encode_visible
from timm.mim.masking import split_mask
from timm.models.cait import Cait
from tiny_models import TOKEN_DROPPING_BUILDERS, build, images_for

MODELS = list(TOKEN_DROPPING_BUILDERS)


def make(method, name, **kwargs):
    backbone = build(name, **kwargs)
    if method == 'mae':
        return MAE(backbone, img_size=(64, 96), mask_ratio=0.6, decoder_dim=24, decoder_depth=1, decoder_heads=2)
    return IJEPA(backbone, img_size=(64, 96), predictor_dim=24, predictor_depth=1, predictor_heads=2)


@pytest.fixture(params=[(method, name) for method in ('mae', 'ijepa') for name in MODELS], ids='-'.join)
def method(request):
    return make(*request.param)


@pytest.fixture(params=MODELS)
def mae(request):
    return make('mae', request.param)


def noise_for(method, batch_size=2, seed=3):
    return torch.rand(method.noise_shape(batch_size), generator=torch.Generator().manual_seed(seed))


def test_a_training_step(method):
    images, noise = images_for(method), noise_for(method)
    output = method(images, noise=noise)
    assert output.loss.shape == () and output.loss.isfinite() and output.loss.dtype == torch.float32
    assert output.prediction.shape == output.target.shape and output.prediction.dtype == torch.float32
    assert output.mask.shape == (2, *method.grid_size) and output.mask.dtype == torch.bool
    assert method.pixel_mask(output.mask).shape == (2, 1, 64, 96)
    output.loss.backward()
    # DistributedDataParallel without find_unused_parameters wants one for each
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    zero = [name for name, p in method.named_parameters() if p.requires_grad and not p.grad.any()]
    # a key bias moves all scores of a query alike, softmax does not see it; CaiT's class token comes after the last
    # patch block, and I-JEPA has no use for it
    allowed = ('k_bias', 'cls_token', 'blocks_token_only') if isinstance(method.backbone, Cait) else ('k_bias',)
    allowed = allowed if isinstance(method, IJEPA) else ('k_bias',)
    assert [name for name in zero if not any(part in name for part in allowed)] == []

    # on the same batch the loss falls
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(8):
        optimizer.step()
        optimizer.zero_grad()
        last = method(images, noise=noise).loss
        last.backward()
    assert last < output.loss


@torch.no_grad()
def test_masked_pixels_are_not_seen(mae):
    mae.eval()
    images = images_for(mae)
    mask = mae(images, noise=noise_for(mae)).mask
    pixels = mae.pixel_mask(mask)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(mae.reconstruct(other, mask), mae.reconstruct(images, mask))
    seen = torch.where(pixels, images, torch.randn_like(images))
    assert not torch.equal(mae.reconstruct(seen, mask), mae.reconstruct(images, mask))


@torch.no_grad()
def test_tokens_keep_their_positions(mae):
    """Positions, absolute or rotary, belong to a patch's place, not to its place among the kept tokens."""
    mae.eval()
    images = images_for(mae)
    mask = mae(images, noise=noise_for(mae)).mask
    visible, _ = split_mask(mask.flatten(1), mae.num_visible)
    features = encode_visible(mae.backbone, images.masked_fill(mae.pixel_mask(mask), 0.), visible)
    prefix = mae.num_prefix_tokens
    assert features.shape[1] == prefix + mae.num_visible
    # in another order the tokens are the same; sums of attention run in another order too
    turned = encode_visible(mae.backbone, images.masked_fill(mae.pixel_mask(mask), 0.), visible.flip(1))
    torch.testing.assert_close(turned[:, prefix:].flip(1), features[:, prefix:], rtol=1e-4, atol=1e-5)
    # the contents of two places exchanged do more than exchange two features
    height, width = mae.patch_stride
    exchanged = images.clone()
    for sample in range(2):
        (a, b), (c, d) = (divmod(place, mae.grid_size[1]) for place in visible[sample, :2].tolist())
        first = exchanged[sample, :, a * height:(a + 1) * height, b * width:(b + 1) * width]
        second = exchanged[sample, :, c * height:(c + 1) * height, d * width:(d + 1) * width]
        first[:], second[:] = second.clone(), first.clone()
    other = encode_visible(mae.backbone, exchanged.masked_fill(mae.pixel_mask(mask), 0.), visible)[:, prefix:]
    distance = (other[:, [1, 0]] - features[:, prefix:][:, :2]).abs().amax((1, 2))
    assert (distance > 1e-3).all()


@torch.no_grad()
def test_hiera_is_encoded_as_by_its_own_mask():
    mae = make('mae', 'hiera').eval()
    images = images_for(mae)
    mask = mae(images, noise=noise_for(mae)).mask
    assert mae.patch_stride == (32, 32) and mae.grid_size == (2, 3) and mae.num_visible == 2
    visible, _ = split_mask(mask.flatten(1), mae.num_visible)
    features = encode_visible(mae.backbone, images.masked_fill(mae.pixel_mask(mask), 0.), visible)
    # upstream's way, by boolean indexing
    expected = mae.backbone.forward_features(images, mask=~mask.flatten(1))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method, name', [
    ('mae', 'vit'), ('mae', 'eva_mixed_rope'), ('mae', 'naflex'), ('mae', 'hiera'),
    ('ijepa', 'vit_dynamic'), ('ijepa', 'vit_distilled'), ('ijepa', 'eva'),
])
def test_compiles_as_one_graph(method, name):
    torch._dynamo.reset()  # graphs of other methods count towards the limit of recompilations
    method = make(method, name).eval()
    images, noise = images_for(method), noise_for(method)
    compiled = torch.compile(method, fullgraph=True, backend='eager')
    output, expected = compiled(images, noise=noise), method(images, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(output[:4], expected[:4]))


@pytest.mark.parametrize('name', ['vit_registers', 'eva_mixed_rope', 'naflex_mixed_rope', 'hiera'])
@pytest.mark.parametrize('method', ['mae', 'ijepa'])
def test_a_step_never_waits_for_the_device(method, name):
    method = make(method, name)
    images = images_for(method)
    with NoHostSync():
        noise = keyed_noise(0, 1, torch.arange(2), method.noise_shape(2)[1])
        method(images, noise=noise).loss.backward()
        if method.__class__ is IJEPA:
            method.update_target(0.5)


@pytest.mark.parametrize('name', ['vit', 'eva', 'naflex', 'hiera'])
@pytest.mark.parametrize('in_chans', [1, 4])
@pytest.mark.parametrize('method', ['mae', 'ijepa'])
def test_channels(method, name, in_chans):
    method = make(method, name, in_chans=in_chans)
    images = images_for(method)
    assert images.shape[1] == in_chans
    output = method(images, noise=noise_for(method))
    output.loss.backward()
    if isinstance(method, MAE):
        assert output.target.shape[2] == method.patch_stride[0] * method.patch_stride[1] * in_chans
        assert method.reconstruct(images, output.mask).shape == images.shape


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('method', ['mae', 'ijepa'])
def test_autocast_computes_the_loss_in_float32(method, dtype):
    method = make(method, 'vit')
    images, noise = images_for(method), noise_for(method)
    with torch.autocast('cpu', dtype):
        output = method(images, noise=noise)
    assert output.loss.dtype == output.prediction.dtype == output.target.dtype == torch.float32
    # bfloat16 has eight bits, against the same in float32
    assert output.loss.item() == pytest.approx(method(images, noise=noise).loss.item(), rel=3e-2)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', ['vit', 'eva', 'hiera'])
@pytest.mark.parametrize('method', ['mae', 'ijepa'])
def test_gradient_checkpointing_changes_nothing(method, name):
    method = make(method, name)
    images, noise = images_for(method), noise_for(method)
    gradients = []
    for enable in (False, True):
        method.set_grad_checkpointing(enable)
        method.zero_grad()
        method(images, noise=noise).loss.backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.requires_grad})
    assert method.backbone.grad_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize('method, options', [
    ('mae', dict(decoder_dim=24, decoder_depth=1, decoder_heads=2)), ('ijepa', dict(predictor_dim=24))])
def test_encoder_is_a_plain_model(method, options):
    import timm
    model_kwargs = dict(depth=1, embed_dim=24, num_heads=2, num_classes=10)
    by_name = create_mim(method, 'vit_tiny_patch16_224', img_size=(64, 96), model_kwargs=model_kwargs, **options)
    encoder = timm.create_model('vit_tiny_patch16_224', img_size=(64, 96), **{**model_kwargs, 'num_classes': 0})
    encoder.load_state_dict(by_name.backbone.state_dict())  # strict
    images = images_for(by_name)
    assert torch.equal(encoder.eval()(images), by_name.backbone.eval()(images))


def test_construction_on_the_meta_device():
    for method in ('mae', 'ijepa'):
        with torch.device('meta'):
            method = create_mim(method, 'vit_large_patch16_224')
        assert {parameter.device.type for parameter in method.parameters()} == {'meta'}
        assert method.grid_size == (14, 14)
