"""A model on a feature map with masked cells: what stands at masked cells, at any depth, changes no visible one."""
import copy

import pytest
import torch
import torch.nn as nn

import timm
from timm.layers import BlurPool2d, GroupNorm
from timm.mim import FCMAE, MIMUnsupportedError, SparK, create_mim, list_mim_models, masked_images
from timm.mim import visible_map
from timm.mim.errors import ImageSizeError
from timm.mim.factory import unsupported_model
from timm.mim.visible_norm import visible_batch_norm
from timm.mim.zeroing import zero_masked
from timm.models.focalnet import FocalNet
from timm.models.resnet import BasicBlock, ResNet

SIZE = (64, 96)
# one small model per kind of operation: batch norm, layer norm, GRN, squeeze-excite, padding by SAME, blur pools,
# standardised weights, group norm, split attention, selective kernels, ECA, global context, nearest interpolation, ...
MODELS = {
    name: dict(kwargs) for name, kwargs in {
        'test_resnet': {}, 'test_convnext': {}, 'test_convnext2': {}, 'test_efficientnet': {}, 'test_nfnet': {},
        'test_byobnet': {}, 'test_mambaout': {}, 'ghostnetv2_100': {}, 'repghostnet_050': {},
        'tf_mobilenetv3_small_minimal_100': {}, 'lcnet_050': {}, 'starnet_s050': {}, 'regnety_002': {},
    }.items()}
STEM = dict(num_classes=0, layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
BRANCHES = {
    'blur': lambda: ResNet(BasicBlock, aa_layer=BlurPool2d, stem_type='deep', avg_down=True, **STEM),
    'eca': lambda: ResNet(BasicBlock, block_args=dict(attn_layer='eca'), **STEM),
    'global_context': lambda: ResNet(BasicBlock, block_args=dict(attn_layer='gc'), **STEM),
    'group_norm': lambda: ResNet(BasicBlock, norm_layer=lambda width, **kw: GroupNorm(width, 4), **STEM),
    'compiled': lambda: ResNet(BasicBlock, stem_width=4, block_args=dict(attn_layer='se'), **STEM),
    'focal': lambda: FocalNet(embed_dim=8, depths=(1, 1, 1, 1), num_classes=0),
    'efficientvit': lambda: timm.create_model('efficientvit_b0', num_classes=0),
}


def pytest_generate_tests(metafunc):
    if 'registered' in metafunc.fixturenames:
        everything = metafunc.config.getoption('--all-models', False)
        metafunc.parametrize('registered', list_mim_models('fcmae') if everything else [])


def build(name):
    torch.manual_seed(0)
    model = BRANCHES[name]() if name in BRANCHES else timm.create_model(name, num_classes=0, **MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def random_mask(seed=0):
    mask = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[:, 0, 0], mask[:, 1, 1] = False, True
    return mask


def images_for(seed=1):
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def disturb(monkeypatch):
    """Replaces what stands at masked cells behind every operation, unless the map says that it is 0, which it checks.
    """
    generator = torch.Generator()

    def disturbed(handler):
        def handle(func, *args, **kwargs):
            result = handler(func, *args, **kwargs)
            for x in result if isinstance(result, (list, tuple)) else [result]:
                if not isinstance(x, visible_map.VisibleMap) or any(x is value for value in args):
                    continue
                if x.data.is_meta:
                    continue
                if x.is_zero:
                    assert not x.data.masked_fill(x.visible, 0.).any(), func.__name__
                else:
                    noise = torch.randn(x.data.shape, generator=generator).abs() + 0.5
                    x.data = torch.where(x.visible, x.data, noise)
            return result
        return handle
    monkeypatch.setattr(visible_map, 'RULES', {
        name: disturbed(handler) for name, handler in visible_map.RULES.items()})
    return generator.manual_seed


def features_and_gradients(model, images, mask):
    model.zero_grad()
    torch.manual_seed(2)  # dropout, stochastic depth
    features, maps = model.forward_intermediates(masked_images(images, mask))
    seen = [x.zeroed() for x in maps]
    sum(x.square().mean() for x in seen).backward()
    return [x.detach() for x in seen], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('name', [*MODELS, *BRANCHES])
def test_visible_features_do_not_depend_on_masked_cells_by_one_bit(name, disturb):
    model = build(name).train()
    images, mask = images_for(), random_mask()
    other = images.masked_fill(mask.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1), torch.nan)
    twin = copy.deepcopy(model)
    disturb(0)
    features, gradients = features_and_gradients(model, images, mask)
    disturb(1)
    others, other_gradients = features_and_gradients(twin, other, mask)
    assert all(x.isfinite().all() and x.any() for x in features)
    assert all(map(torch.equal, features, others))
    assert gradients.keys() == other_gradients.keys()
    assert all(torch.equal(gradients[key], other_gradients[key]) for key in gradients)
    assert all(map(torch.equal, model.buffers(), twin.buffers()))  # running statistics


def test_registered_model(registered, disturb):
    """Each listed model, with `--all-models`: it is built, and blind by the last bit in training."""
    for size in ((64, 96), (128, 192), (256, 320), None):
        try:
            method = FCMAE(timm.create_model(registered, num_classes=0), img_size=size, decoder_dim=8).train()
            break
        except (AssertionError, RuntimeError, ValueError):
            if size is None:
                raise
    assert registered not in list_mim_models('spark') or SparK(
        copy.deepcopy(method.backbone), img_size=method.img_size, decoder_dim=2 ** 6).num_visible > 0
    mask = torch.ones(2, *method.grid_size, dtype=torch.bool)
    mask[:, ::2, ::2] = False
    images = torch.randn(2, method.in_chans, *method.img_size, generator=torch.Generator().manual_seed(1))
    other = images.masked_fill(method.pixel_mask(mask), torch.nan)
    twin = copy.deepcopy(method.backbone)
    disturb(0)
    features, gradients = features_and_gradients(method.backbone, images, mask)
    disturb(1)
    others, other_gradients = features_and_gradients(twin, other, mask)
    assert all(map(torch.equal, features, others))
    assert all(torch.equal(gradients[key], other_gradients[key]) for key in gradients)


@torch.no_grad()
@pytest.mark.parametrize('name', [*MODELS, *BRANCHES])
def test_with_nothing_masked_features_are_the_dense_models(name):
    model = build(name).eval()
    images, mask = images_for(), torch.zeros(2, 2, 3, dtype=torch.bool)
    expected, maps = model.forward_intermediates(images)
    features, masked_maps = model.forward_intermediates(masked_images(images, mask))
    # sums of group norms and attention are added up in another order than PyTorch's kernels do
    exact = name not in ('group_norm', 'efficientvit', 'global_context', 'ghostnetv2_100')
    for x, dense in zip([features, *masked_maps], [expected, *maps]):
        assert torch.equal(x.data, dense) if exact else torch.allclose(x.data, dense, rtol=1e-4, atol=1e-5)


def test_nothing_masked_in_training_has_the_statistics_of_batch_norm():
    model = build('test_resnet').train()
    twin = copy.deepcopy(model)
    images, mask = images_for(), torch.zeros(2, 2, 3, dtype=torch.bool)
    features = model.forward_features(masked_images(images, mask)).data
    torch.testing.assert_close(features, twin.forward_features(images), rtol=1e-4, atol=1e-4)
    for x, y in zip(model.buffers(), twin.buffers()):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_gradient_of_batch_norm():
    """Against finite differences."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    visible = torch.rand(2, 1, 4, 4) < 0.6
    torch.autograd.gradcheck(lambda *inputs: visible_batch_norm(
        inputs[0].where(visible, 0.), visible, None, None, *inputs[1:], 0.1, 1e-5), (x, weight, bias))


@pytest.mark.parametrize('reduce', [
    lambda x: x.std((2, 3)), lambda x: x.std((2, 3), unbiased=False), lambda x: torch.std(x, dim=1, correction=0),
    lambda x: torch.var_mean(x, dim=(2, 3), unbiased=False)[0], lambda x: torch.var(x, dim=(2, 3), correction=1)])
def test_deviation_is_the_one_asked_for(reduce):
    """Against PyTorch on a map whose masked part was cut off."""
    torch.manual_seed(0)
    images, mask = torch.randn(1, 3, 4, 8), torch.tensor([[[False, True]]])
    found = reduce(masked_images(images, mask))
    found = found.zeroed()[..., :4] if isinstance(found, visible_map.VisibleMap) else found
    torch.testing.assert_close(found, reduce(images[..., :4]))


@pytest.mark.parametrize('reduce', [
    lambda x: x.mean((2, 3), dtype=torch.float64), lambda x: x.std((2, 3), False), lambda x: x.sum(axis=(2, 3))])
def test_other_arguments_are_refused(reduce):
    with pytest.raises(MIMUnsupportedError, match='there is no rule for (mean|std|sum) of a feature map .* by '):
        reduce(masked_images(torch.randn(1, 3, 4, 8), torch.tensor([[[False, True]]])))


def test_batch_norm_does_not_read_masked_cells():
    """Not even if they are infinite, as float16 makes large values."""
    torch.manual_seed(0)
    mask = torch.rand(2, 4, 4) < 0.4
    x, visible = torch.randn(2, 3, 4, 4), ~mask.unsqueeze(1)
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    results = []
    for hidden in (0., torch.inf, torch.nan):
        values = x.masked_fill(~visible, hidden).requires_grad_()
        y = norm(masked_images(values, mask))
        assert y.is_zero and not y.data.masked_fill(visible, 0.).any()
        gradients = torch.autograd.grad(y.data.square().sum(), (values, norm.weight, norm.bias))
        results.append([y.data.detach(), *gradients])
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other))
    assert all(value.isfinite().all() for value in results[0])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_masked(dtype):
    """Against `torch.where`, in any layout and dtype."""
    torch.manual_seed(0)
    visible = torch.rand(2, 1, 3, 4) < 0.5
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 5, 3, 4).to(dtype).to(memory_format=layout)
        x[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -0., -torch.inf])
        x.requires_grad_()
        found, expected = zero_masked(x, visible), torch.where(visible, x, 0.)
        assert torch.equal(found.nan_to_num(7.), expected.nan_to_num(7.)) and found.stride() == expected.stride()
        grad = torch.randn_like(found)
        assert torch.equal(*(torch.autograd.grad(y, x, grad)[0] for y in (found, expected)))


def test_at_least_one_cell_stays_visible():
    """Of two units FCMAE rounds the masked share up, which would hide both."""
    backbone = timm.create_model('test_convnext2', num_classes=0)
    with pytest.raises(ValueError, match='masks 2 of the 2 units of the image'):
        FCMAE(backbone, img_size=(32, 64), mask_unit=32, mask_ratio=0.6)
    assert SparK(backbone, img_size=(32, 64), mask_unit=32, mask_ratio=0.6, decoder_dim=32).num_visible == 1


def test_pools_see_visible_cells_alone():
    mask = torch.tensor([[[False, True]]])
    images = torch.arange(8.).view(1, 1, 2, 4) - 10
    x = masked_images(images, mask)
    assert nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False).zeroed().flatten().tolist() == pytest.approx(
        [-7.5, -7.5, 0, 0] * 2)
    assert nn.functional.max_pool2d(x, 3, 1, 1).zeroed().flatten().tolist() == [-5, -5, 0, 0] * 2
    assert x.mean((2, 3)).item() == -7.5 and nn.functional.adaptive_max_pool2d(x, 1).item() == -5


@pytest.mark.parametrize('method', ['spark', 'fcmae'])
def test_compiled_checkpointed_and_copied(method):
    backbone = build('compiled')
    names = list(backbone.state_dict())
    model = create_mim(method, backbone, img_size=SIZE, decoder_dim=32).train()
    images, mask = images_for(), random_mask()
    assert list(model.backbone.state_dict()) == names

    def step(module):
        torch.manual_seed(3)
        module.zero_grad()
        loss = module(images, mask=mask).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None]

    twins = [copy.deepcopy(model) for _ in range(3)]
    twins[1].set_grad_checkpointing()
    twins[2].compile(backend='aot_eager', fullgraph=True)
    loss, gradients = step(model)
    for twin in twins:
        other, others = step(twin)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)
    mask[1] = True
    with pytest.raises(RuntimeError, match='at least one cell visible in each sample'):
        twins[2](images, mask=mask)


@pytest.mark.parametrize('method', [SparK, FCMAE])
def test_refusals(method):
    with pytest.raises(MIMUnsupportedError, match='vit_.* cannot|VisionTransformer mixes cells by attention'):
        method(timm.create_model('test_vit'))
    with pytest.raises(MIMUnsupportedError, match='no rule for'):
        method(timm.create_model('fastvit_sa12', num_classes=0), img_size=(256, 256))
    with pytest.raises(ImageSizeError, match='height is a multiple of 32'):
        method(build('test_resnet'), img_size=(64, 80))
    with pytest.raises(ValueError, match='mask_ratio'):
        method(build('test_resnet'), img_size=SIZE, mask_ratio=0.01)
    with pytest.raises(ValueError, match='mask_unit'):
        method(build('test_resnet'), img_size=SIZE, mask_unit=16)


class OwnModel(nn.Module):
    """A model of a user that shifts cells by an operation of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward_intermediates(self, x):
        x = self.conv(x)
        return x, [torch.fft.fft(x).real]


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(MIMUnsupportedError, match='no rule for fft_fft'):
        OwnModel().forward_intermediates(masked_images(images_for(), random_mask()))


def test_models():
    spark, fcmae = list_mim_models('spark'), list_mim_models('fcmae')
    assert {'resnet50', 'efficientnet_b0', 'regnety_016', 'convnextv2_base', 'vgg16', 'densenet121'} <= set(spark)
    assert set(fcmae) - set(spark) == set(timm.list_models('convmixer*'))
    for name in ('swin_tiny_patch4_window7_224', 'inception_v3', 'fastvit_sa12', 'halonet50ts', 'vit_base_patch16_224'):
        assert name not in spark
        assert unsupported_model('spark', name)


def test_masks():
    method = SparK(build('test_resnet'), img_size=(128, 192), mask_unit=64, mask_ratio=0.5, decoder_dim=32)
    mask = method.make_mask(torch.rand(method.noise_shape(3)))
    assert mask.shape == (3, 4, 6) and mask.flatten(1).sum(1).tolist() == [12, 12, 12]
    units = mask.unflatten(1, (2, 2)).unflatten(3, (3, 2))
    assert torch.equal(units.float().mean((2, 4)) % 1, torch.zeros(3, 2, 3))
    assert (SparK(build('test_resnet'), img_size=224, decoder_dim=32).num_visible,
            FCMAE(build('test_resnet'), img_size=224, decoder_dim=32).num_visible) == (20, 19)
