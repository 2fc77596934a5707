"""Masked means masked: no bit of a prediction, or of a gradient that does not come from the target, depends on masked
pixels. For every pair of method and model that `list_mim_models` names: by default one small model per class and
branch, with `--all-models` all that are registered.
"""
import pytest
import torch

from blindness import differences, replaced, sees_visible_pixels
from every_model import LARGEST, OPTIONS, REFUSED_CASES, REFUSED_WHEN_DROPPING, branches, case_sizes, create, \
    registered_sizes
from registry import registered

from timm.mim import SimMIM, create_mim, factory, list_mim_models, masked_l1_loss
from timm.mim.method import MIMMethod
from timm.mim.factory import import_user_module
from timm.models.beit import Beit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from test_maskfeat import EXAMPLE
from tiny_models import build, images_for


def pytest_generate_tests(metafunc):
    if 'case' in metafunc.fixturenames:
        metafunc.parametrize('method, case', [
            pytest.param(method, case, id=f'{method}-{case.name}') for method in OPTIONS for case in branches(method)
            if case.name not in REFUSED_CASES and (method == 'simmim' or case.name not in REFUSED_WHEN_DROPPING)])
    if 'name' in metafunc.fixturenames:
        everything = metafunc.config.getoption('--all-models', False)
        small = {entry.name for entry in registered() if entry.parameters <= LARGEST}
        names = [(m, name) for m in OPTIONS for name in list_mim_models(m) if name in small] if everything else []
        metafunc.parametrize('method, name', names)


def overlapping(**kwargs):
    """A model whose patches overlap."""
    torch.manual_seed(0)
    return PyramidVisionTransformerV2(
        depths=[1, 1], embed_dims=[16, 32], num_heads=[1, 2], sr_ratios=[4, 2], mlp_ratios=[2., 2.], **kwargs)


def assert_blind(method):
    for training, fast_path, by in ((False, False, 'nan'), (True, True, 'far')):
        method.train(training)
        method.fast_path = fast_path
        assert differences(method, by) == (False, [])
    assert sees_visible_pixels(method.eval())


def test_branch(method, case):
    torch.manual_seed(0)
    assert_blind(create(method, case.model, case.model_kwargs, case_sizes(case), registered=False))


def test_registered_model(method, name):
    torch.manual_seed(0)
    assert_blind(create(method, name, {}, registered_sizes(name), registered=True))


@pytest.mark.parametrize('target, loss', [('normalized_pixels', 'l2'), ('hog', 'smooth_l1')])
def test_targets(target, loss):
    assert_blind(create_mim('simmim', overlapping(), img_size=(64, 96), mask_unit=16, target=target, loss=loss))


def test_method_of_a_user(monkeypatch):
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))
    import_user_module(str(EXAMPLE))
    assert_blind(create_mim('maskfeat', overlapping(), img_size=(64, 96)))


def test_what_is_tested_here_can_fail(monkeypatch):
    """Without blanking, a model whose patches overlap sees what it is to predict."""
    method = create_mim('simmim', overlapping(), img_size=(64, 96), mask_unit=16)
    monkeypatch.setattr(MIMMethod, 'blank', lambda self, images, mask: images)
    changes, gradients = differences(method.eval(), 'far')
    assert changes and gradients


@torch.no_grad()
@pytest.mark.parametrize('model', [overlapping, lambda: build('vit')], ids=['overlapping', 'vit'])
def test_reconstructions_hidden_states_and_attention(model):
    method = SimMIM(model(), img_size=(64, 96), mask_unit=16).eval()
    images = torch.randn(2, 3, 64, 96)
    mask = method.make_mask(torch.rand(method.noise_shape(2)))
    other = replaced(images, method.pixel_mask(mask), 'nan')
    assert torch.equal(method.reconstruct(other, mask), method.reconstruct(images, mask))
    states, others = (method.forward_intermediates(x, mask, intermediates_only=True) for x in (images, other))
    assert len(states) == len(others) > 1 and all(map(torch.equal, states, others))
    if hasattr(method.backbone, 'blocks'):  # the others have no attention that makes a map
        maps, others = (method.attention_maps(x, mask) for x in (images, other))
        assert maps and all(torch.equal(maps[name], others[name]) for name in maps)


def beit():
    torch.manual_seed(0)
    return Beit(
        img_size=(64, 96), embed_dim=24, depth=2, num_heads=2, num_classes=0, use_rel_pos_bias=True, init_values=0.1)


@pytest.mark.parametrize('model', [*(lambda name=name: build(name) for name in ('vit', 'eva', 'swin')), beit],
                         ids=['vit', 'eva', 'swin', 'beit'])
def test_models_whose_patches_do_not_overlap_have_the_loss_that_they_had(model):
    """The loss without blanking, written down with a hook on the patch embedding of the model's own forward pass."""
    method = SimMIM(model(), img_size=(64, 96), mask_unit=32).eval()
    images = images_for(method)
    mask = method.make_mask(torch.rand(method.noise_shape(2), generator=torch.Generator().manual_seed(0)))
    output = method(images, mask=mask)
    gradients = torch.autograd.grad(output.loss, [p for p in method.parameters() if p.requires_grad])

    def insert(module, args, tokens):
        masked = mask.unsqueeze(-1) if tokens.ndim == 4 else mask.flatten(1).unsqueeze(-1)
        return torch.where(masked, method.mask_token.view(-1), tokens)

    handle = method.backbone.patch_embed.register_forward_hook(insert)
    features = method.backbone.forward_features(images)
    handle.remove()
    prediction = method.decoder(method.backbone.features_to_map(features, tuple(mask.shape[1:]))).float()
    loss = masked_l1_loss(prediction, images, method.pixel_mask(mask))
    expected = torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])
    assert torch.equal(output.loss, loss)
    assert all(map(torch.equal, gradients, expected))
