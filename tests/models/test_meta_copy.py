"""The grid and width of patch tokens are read off a copy on the meta device, and the model notices nothing."""
import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.utils.parametrizations as parametrizations

import timm
from timm.models import EmbedStagesMixin
from timm.models._meta_copy import map_size, meta_copy

sys.path.append(str(Path(__file__).resolve().parents[1] / 'equivalence'))
from builders_convolutional import high_resolution_net, squeeze_excitation_net  # noqa: E402

UNPADDED = ['inception_v3', 'inception_v4', 'inception_resnet_v2', 'legacy_xception', 'nasnetalarge', 'pnasnet5large']


def resnet(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=5, **kwargs)


def grid_of(model, size):
    return tuple(model.embed_patches(torch.zeros(1, 3, *size)).shape[-2:])


def test_the_model_notices_nothing():
    model = resnet().train()
    ran = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: ran.append('forward'))
        module.register_forward_pre_hook(lambda *_: ran.append('before'))
    weights, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modules, attributes = list(model.modules()), [list(vars(module)) for module in model.modules()]
    tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]

    assert model.patch_grid((65, 96)) == (17, 24) and model.patch_dim == 32

    assert ran == [] and torch.equal(torch.get_rng_state(), random_state)
    assert [a is b for a, b in zip(model.modules(), modules)] == [True] * len(modules)
    assert [list(vars(module)) for module in model.modules()] == attributes
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == tensors
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_model_can_still_be_copied_and_scripted():
    model = resnet().eval()
    image = torch.randn(1, 3, 64, 64)
    expected = model(image)
    assert model.patch_grid((64, 64)) == (16, 16)
    assert torch.equal(copy.deepcopy(model)(image), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(image), expected)
    torch.testing.assert_close(torch.jit.script(model)(image), expected)


def test_only_what_runs_is_copied():
    replica = meta_copy(resnet())
    replica.embed_patches(torch.empty(1, 3, 64, 64, device='meta'))
    assert replica._modules.originals == {'layer1', 'layer2', 'layer3', 'layer4', 'global_pool', 'fc'}
    assert replica.layer1[0].conv1.weight.is_meta and replica.layer1[0] is replica.layer1[0]


def test_a_cache_is_not_written():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2)
            self.cache, self.mask = {}, torch.ones(3, 1, 1)

        def forward(self, x):
            self.cache[str(x.device)] = x
            return self.conv(x) * self.mask

    module = Cached()
    assert map_size(module, (9, 12)) == (4, 5)
    assert module.cache == {} and not module.mask.is_meta


def set_stride(model):
    model.conv1[0].stride = (1, 1)


def remove_pool(model):
    model.maxpool = nn.Identity()


def replace_convolution(model):
    model.conv1 = nn.Conv2d(3, 8, 5, stride=3)
    model.bn1, model.act1, model.maxpool = nn.Identity(), nn.Identity(), nn.AvgPool2d(3, ceil_mode=True)


@pytest.mark.parametrize('change', [set_stride, remove_pool, replace_convolution])
def test_a_change_of_the_stem_is_noticed(change):
    model = resnet().eval()
    assert model.patch_grid((64, 96)) == (16, 24)
    change(model)
    assert model.patch_grid((64, 96)) == grid_of(model, (64, 96)) != (16, 24)


@pytest.mark.parametrize('name, stride', [
    ('test_resnet', 4), ('test_efficientnet', 2), ('test_convnext', 4), ('tf_efficientnet_b0', 2),
    ('legacy_seresnet18', 4), ('cs3darknet_focus_s', 2), ('hgnetv2_b0', 4), ('vgg11', 2),
    ('swin_tiny_patch4_window7_224', 4), ('mobilenetv3_small_050', 2), ('tresnet_m', 4), ('darknet53', 1)])
def test_grid_of_a_very_large_image(name, stride):
    """`timm.mim` reads the stride off it."""
    model = timm.create_model(name, device='meta')
    assert model.patch_grid((1 << 20, 1 << 20)) == ((1 << 20) // stride, (1 << 20) // stride)


def test_pool_that_rounds_up():
    model = squeeze_excitation_net().eval()
    assert model.patch_grid((61, 95)) == grid_of(model, (61, 95)) == (15, 24)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_any_type_and_state(dtype):
    model = resnet(in_chans=5).to(dtype)
    model.set_grad_checkpointing()
    parametrizations.weight_norm(model.conv1[0])
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.inference_mode():
        assert model.patch_grid((64, 96)) == (16, 24)


def test_tokens_are_replaced_in_a_compiled_graph():
    model = resnet().eval()
    token = torch.randn(32)

    def features(image):
        patches = model.map_tokens(model.embed_patches(image), lambda tokens: tokens * 0 + token)
        return model.forward_stages(model.embed_positions(patches))

    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(torch.compile(features, backend='eager', fullgraph=True)(image), features(image))


@pytest.mark.parametrize('name', UNPADDED)
def test_grids_that_divide_no_image_are_refused(name):
    model = timm.create_model(name, device='meta')
    assert type(model).patch_grid.refused
    with pytest.raises(NotImplementedError, match=f'^{type(model).__name__} has no grid of patches that divides an '):
        model.patch_grid((299, 299))
    patches = model.embed_patches(torch.empty(1, 3, 299, 299, device='meta'))
    assert patches.shape[1] == model.patch_dim
    assert model.map_tokens(patches, torch.zeros_like).shape == patches.shape


def test_several_feature_maps_are_refused():
    model = high_resolution_net(pruned=True).eval()
    features = model(torch.randn(1, 3, 64, 64))
    with pytest.raises(NotImplementedError, match='^HighResolutionNet returns a list of 4 tensors, not a single'):
        model.features_to_map(features, (16, 16))


def test_tokens_without_a_grid():
    class Flat(EmbedStagesMixin, nn.Module):
        in_chans = 3

        def __init__(self):
            super().__init__()
            self.proj = nn.Conv2d(3, 8, 4, 4)

        def embed_patches(self, x):
            return self.proj(x).flatten(2).transpose(1, 2)

        def forward_stages(self, embedded):
            return embedded

    with pytest.raises(NotImplementedError, match=r'^Flat has patch tokens of shape \(1, 256, 8\) without a grid'):
        Flat().patch_grid((64, 64))
