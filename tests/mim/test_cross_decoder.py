"""MAE with the decoder of CrossMAE, against the published formulas written out sample by sample and head by head.

The authors' code has a licence that forbids to use it here, and no package contains it.
"""
import copy
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from blindness import assert_blind
from every_model import assert_learns, registered_sizes, without_gradient

from timm.layers import set_reentrant_ckpt
from timm.mim import MAE, create_mim, list_mim_models, patchify
from timm.mim.extraction import BlockRecorder
from timm.mim.pretrain.sharding import shard
from tiny_models import TOKEN_DROPPING_BUILDERS, build, images_for

SMALL = dict(decoder='cross', decoder_dim=24, decoder_depth=3, decoder_heads=2)


def cross(name='vit', **options):
    torch.manual_seed(0)
    return MAE(build(name), img_size=(64, 96), **{**SMALL, **options})


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def block_outputs(vit, tokens):
    """The residual stream after each block of a plain vision transformer."""
    outputs = []
    for block in vit.blocks:
        query, key, value = linear(layer_norm(tokens, block.norm1), block.attn.qkv).chunk(3, -1)
        tokens = tokens + linear(attention(query, key, value, vit.blocks[0].attn.num_heads), block.attn.proj)
        hidden = F.gelu(linear(layer_norm(tokens, block.norm2), block.mlp.fc1))
        tokens = tokens + linear(hidden, block.mlp.fc2)
        outputs.append(tokens)
    return outputs


def attention(query, key, value, heads):
    width = query.shape[-1] // heads
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        results.append(scores.softmax(-1) @ value[:, part])
    return torch.cat(results, -1)


def reference(method, images, noise, mask_ratio, kept_ratio):
    """Loss of CrossMAE, with the share `kept_ratio` of all patches predicted; one sample at a time."""
    model, decoder = method.backbone, method.decoder
    patches = patchify(images, method.patch_stride)
    length = patches.shape[1]
    num_visible = int(length * (1 - mask_ratio))
    first = num_visible + int(length * (mask_ratio - kept_ratio))
    errors = []
    for sample in range(len(images)):
        order = noise[sample].argsort()
        visible, predicted = order[:num_visible], order[first:]
        weight = model.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        embedded = patches[sample] @ weight.T + model.patch_embed.proj.bias + model.pos_embed[0, 1:]
        tokens = torch.cat([model.cls_token[0] + model.pos_embed[0, :1], embedded[visible]])
        maps = block_outputs(model, tokens)
        x = decoder.mask_token[0] + decoder.pos_embed[0, predicted]
        for number, block in enumerate(decoder.blocks):
            context = sum(weight * features for weight, features in zip(decoder.mix.weight[number], maps))
            context = layer_norm(context, decoder.context_norms[number])
            key, value = linear(context, block.cross_attn.kv).chunk(2, -1)
            query = linear(layer_norm(x, block.norm1), block.cross_attn.q)
            x = x + linear(attention(query, key, value, SMALL['decoder_heads']), block.cross_attn.proj)
            x = x + linear(F.gelu(linear(layer_norm(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)
        prediction = linear(layer_norm(x, decoder.norm), method.decoder_pred)
        target = patches[sample, predicted]
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        errors.append((prediction - target) ** 2)
    return torch.cat(errors).mean()


@pytest.mark.parametrize('predict_ratio, kept_ratio', [(1.0, 0.75), (1 / 3, 0.25)])
@pytest.mark.parametrize('fast_path', [True, False])
def test_loss_and_gradients_by_the_formulas(predict_ratio, kept_ratio, fast_path):
    method = cross(predict_ratio=predict_ratio).double()
    method.fast_path = fast_path
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    images = images_for(method, 3).double()
    noise = torch.rand(3, 24, generator=torch.Generator().manual_seed(1))
    parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
    output, expected = method(images, noise=noise), reference(method, images, noise, 0.75, kept_ratio)
    torch.testing.assert_close(output.loss, expected)
    ours = torch.autograd.grad(output.loss, parameters.values())
    theirs = torch.autograd.grad(expected, parameters.values())
    for name, a, b in zip(parameters, ours, theirs):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize('name', TOKEN_DROPPING_BUILDERS)
def test_models(name):
    """On each class that drops tokens: blind, and every trainable parameter learns."""
    method = cross(name, predict_ratio=0.5, mask_ratio=0.5)
    assert_blind(method)
    method.zero_grad()
    assert_learns(method)
    assert method.mixed_blocks == {'hiera': [3], 'cait': None}.get(name, [0, 1])


def pytest_generate_tests(metafunc):
    if 'registered' in metafunc.fixturenames:
        everything = metafunc.config.getoption('--all-models', False)
        metafunc.parametrize('registered', list_mim_models('mae') if everything else [])


def test_registered_model(registered):
    for size in registered_sizes(registered):
        try:
            with torch.device('meta'):
                method = create_mim('mae', registered, img_size=size, predict_ratio=0.5, mask_ratio=0.5, **SMALL)
            break
        except (AssertionError, RuntimeError, ValueError) as error:
            problem = error
    else:
        raise problem
    images = torch.empty(2, method.in_chans, *method.img_size, device='meta')
    output = method(images, noise=torch.empty(method.noise_shape(2), device='meta'))
    output.loss.backward()
    assert output.prediction.shape[1] == method.num_predicted and without_gradient(method) == []


@torch.no_grad()
@pytest.mark.parametrize('masking, mask_unit', [('random', None), ('block', None), ('random', 32), ('block', (16, 48))])
def test_a_share_is_predicted(masking, mask_unit):
    method = cross(predict_ratio=0.5, mask_ratio=0.5, masking=masking, mask_unit=mask_unit).eval()
    noise = torch.rand(method.noise_shape(500), generator=torch.Generator().manual_seed(0))
    mask = method.drawn_mask(noise, method.img_size)
    assert mask.masked.shape == (500, 6) and mask.patches.flatten(1).gather(1, mask.masked).all()
    assert (mask.masked.diff(dim=1) > 0).all()
    predicted = torch.zeros(500, 24).scatter(1, mask.masked, 1.)
    shares = predicted.sum(0) / mask.patches.flatten(1).sum(0)
    assert shares.min() > 0.35 and shares.max() < 0.65  # chosen at random, not by place
    images = images_for(method)
    output, mask = method(images, noise=noise[:2]), method.drawn_mask(noise[:2], method.img_size)
    assert torch.equal(output.mask, mask.patches)
    # each patch is predicted on its own, whatever else is
    everything = patchify(method.reconstruct(images, mask.patches), method.patch_stride)
    torch.testing.assert_close(
        output.prediction, everything.gather(1, mask.masked.unsqueeze(-1).expand(-1, -1, 768)), atol=1e-5, rtol=1e-4)
    assert method(images, mask=mask.patches).prediction.shape == (2, 12, 768)  # a caller's mask is predicted whole


@pytest.mark.parametrize('reentrant', [False, True])
def test_gradient_checkpointing_and_copies(reentrant):
    method = cross(predict_ratio=0.5).train()
    images, noise = images_for(method), torch.rand(method.noise_shape(2))
    copied = copy.deepcopy(method)
    copied.set_grad_checkpointing()
    assert copied.recorder is not method.recorder
    set_reentrant_ckpt(reentrant)
    try:
        for each in (method, copied):
            each(images, noise=noise).loss.backward()
            assert each.recorder.outputs is None
    finally:
        set_reentrant_ckpt(False)
    for (name, parameter), other in zip(method.named_parameters(), copied.parameters()):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_outputs_that_no_gradient_reaches():
    blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    recorder = BlockRecorder(list(blocks))
    with pytest.raises(RuntimeError, match='get no gradient with reentrant checkpointing'):
        recorder.record(lambda: checkpoint(blocks, torch.ones(1, 2, requires_grad=True), use_reentrant=True))


@pytest.mark.parametrize('options, message', [
    (dict(decoder='crossed'), "decoder must be 'plain' or 'cross', got 'crossed'."),
    (dict(predict_ratio=0.), 'predict_ratio must be a number above 0 and up to 1, got 0.0.'),
    (dict(predict_ratio=1.5), 'predict_ratio must be a number above 0 and up to 1, got 1.5.'),
    (dict(decoder='plain', predict_ratio=0.5), "predict_ratio 0.5 needs decoder='cross'"),
    (dict(decoder_heads=5), '5 heads do not divide the width 24 of the decoder.'),
    (dict(decoder_depth=0), 'The depth of the decoder must be a number of blocks'),
    (dict(decoder_pos_embed='none'), "pos_embed must be 'sincos' or 'learn', got 'none'."),
])
def test_mistakes(options, message):
    with pytest.raises(ValueError) as error:
        cross(**options)
    assert message in str(error.value)


def test_sharded():
    """Sharded blocks are gathered by hooks, beside those that record their outputs: the same loss and gradients."""
    method, sharded = (cross(predict_ratio=0.5).train() for _ in range(2))
    images, noise = images_for(method), torch.rand(method.noise_shape(2))
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(sharded, torch.device('cpu'))
        for each in (method, sharded):
            each(images, noise=noise).loss.backward()
        for (name, parameter), other in zip(method.named_parameters(), sharded.parameters()):
            if parameter.requires_grad:
                torch.testing.assert_close(other.grad.full_tensor(), parameter.grad, msg=name)
        torch.testing.assert_close(
            sharded.reconstruct(images, method.make_mask(noise)), method.reconstruct(images, method.make_mask(noise)))
    finally:
        torch.distributed.destroy_process_group()
