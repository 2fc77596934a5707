"""Masked means masked: no bit of a prediction, or of a gradient that does not come from the target, depends on masked
pixels. For targets, for the method of a user and for what else a method gives; every pair of method and model that
`list_mim_models` names is in `test_every_model.py`.
"""
import sys

import pytest
import timm
import torch
import torch.nn as nn

from blindness import assert_blind, differences, replaced
from every_model import OPTIONS

from timm.mim import SimMIM, TeacherTarget, create_mim, factory, masked_l1_loss
from timm.mim.method import MIMMethod
from timm.mim.factory import import_user_module
from timm.models.beit import Beit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from test_maskfeat import EXAMPLE
from tiny_models import build, images_for


def overlapping(**kwargs):
    """A model whose patches overlap."""
    torch.manual_seed(0)
    return PyramidVisionTransformerV2(
        depths=[1, 1], embed_dims=[16, 32], num_heads=[1, 2], sr_ratios=[4, 2], mlp_ratios=[2., 2.], **kwargs)


def teacher():
    torch.manual_seed(0)
    return TeacherTarget(overlapping(), mean=(0.,) * 3, std=(1.,) * 3)


@pytest.mark.parametrize('target, loss', [
    (lambda: 'normalized_pixels', 'l2'), (lambda: 'hog', 'smooth_l1'), (teacher, 'smooth_l1'),
    (lambda: lambda images: images.mean(1, keepdim=True), 'l1'),
], ids=['normalized_pixels', 'hog', 'teacher', 'function'])
def test_targets(target, loss):
    assert_blind(create_mim('simmim', overlapping(), img_size=(64, 96), mask_unit=16, target=target(), loss=loss))


def test_batch_statistics_are_those_of_blanked_images():
    """As the page says: no trace of masked pixels in them, and a smaller variance than that of whole images."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=0)
    method = create_mim('simmim', model, img_size=64, mask_unit=16).train()
    images = torch.randn(2, 3, 64, 64)
    mask = method.make_mask(torch.rand(method.noise_shape(2)))
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.momentum = None  # the average of what it has seen

    def statistics(run):
        norm.reset_running_stats()
        run()
        return torch.stack([norm.running_mean, norm.running_var])

    blanked = statistics(lambda: method(images, mask=mask))
    assert torch.equal(blanked, statistics(lambda: method(replaced(images, method.pixel_mask(mask), 'far'), mask=mask)))
    assert (blanked[1] < statistics(lambda: model(images))[1]).all()


def test_method_of_a_user(monkeypatch):
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))
    for name in [name for name in sys.modules if name.startswith('maskfeat (')]:  # a file runs once in a process
        monkeypatch.delitem(sys.modules, name)
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


@torch.no_grad()
def test_reconstructions_of_mae():
    """Of a model whose stem is deep: dropping tokens does not hide the pixels that their neighbours hold."""
    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_r_s16_p8_224', num_classes=0, img_size=(64, 96), embed_dim=24, num_heads=2, depth=1)
    method = create_mim('mae', model, img_size=(64, 96), **OPTIONS['mae']).eval()
    images = torch.randn(2, 3, 64, 96)
    mask = method.make_mask(torch.rand(method.noise_shape(2)))
    other = replaced(images, method.pixel_mask(mask), 'nan')
    assert torch.equal(method.reconstruct(other, mask), method.reconstruct(images, mask))
    assert torch.equal(method(other, mask=mask).prediction, method(images, mask=mask).prediction)


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


@torch.no_grad()
def test_masked_pixels_are_the_mean_of_normalised_images():
    method = SimMIM(overlapping(), img_size=(64, 96), mask_unit=32)
    images, seen = images_for(method), []
    mask = method.make_mask(torch.rand(method.noise_shape(2), generator=torch.Generator().manual_seed(0)))
    method.backbone.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method(images, mask=mask)
    assert torch.equal(seen[0], torch.where(method.pixel_mask(mask), 0., images))
