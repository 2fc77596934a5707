"""data2vec against the formulas of its papers, written out a sample, a copy and a block at a time."""
import copy
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cases import all_cases
from every_model import case_sizes, create
from timm.mim import Data2Vec, create_mim, list_mim_models
from timm.mim.backbone import feature_map
from timm.mim.inverse_block import inverse_squares_mask, inverse_squares_noise_size
from timm.mim.teacher import variety
from timm.models import EmbedStagesMixin
from timm.task import MaskedImageModelingTask
from tiny_models import build, images_for

SMALL = dict(mask_ratio=0.5, clone_batch=2, decoder_dim=48, decoder_layers=2, mask_noise_std=0.)


def data2vec(name='vit', **kwargs):
    method = Data2Vec(build(name), img_size=(64, 96), **{**SMALL, **kwargs})
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in method.backbone.parameters():  # student and teacher differ, as they do in training
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return method.train(name != 'swin')  # which has stochastic depth


def noise_for(method, batch_size=2, seed=3):
    return torch.rand(method.noise_shape(batch_size), generator=torch.Generator().manual_seed(seed))


def block_outputs(encoder, blocks, image):
    """Outputs of blocks for one image, by hooks."""
    found = []
    handles = [block.register_forward_hook(lambda module, args, output: found.append(output)) for block in blocks]
    with torch.no_grad():
        encoder.forward_features(image)
    for handle in handles:
        handle.remove()
    return found


def standardised(x, dim):
    return (x - x.mean(dim, keepdim=True)) / (x.var(dim, unbiased=False, keepdim=True) + 1e-5).sqrt()


def target_of(outputs, first):
    """Average of outputs (1, P + N, C) that are normalised over tokens, normalised over channels."""
    return standardised(torch.stack([standardised(x[0, first:], 0) for x in outputs]).mean(0), 1)


def decoded(method, tokens, visible, masked):
    """Literal decoder of data2vec 2.0: zeros in masked cells, the noise is off."""
    height, width = method.grid_size
    x = torch.zeros(tokens.shape[-1], height * width, dtype=tokens.dtype).index_copy(1, visible, tokens.T)
    x = x.view(1, -1, height, width)
    for layer in method.decoder.layers:
        y = F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2, groups=layer.groups)
        y = F.gelu(standardised(y, 1))
        x = y + x if y.shape[1] == x.shape[1] else y
    return F.linear(x.flatten(2)[0].T[masked], method.decoder.proj.weight, method.decoder.proj.bias)


def assert_same_gradients(method, loss, expected):
    parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    theirs = torch.autograd.grad(expected, list(parameters.values()))
    for name, gradient, other in zip(parameters, ours, theirs):
        assert (gradient - other).norm() <= 2e-4 * other.norm() + 1e-6, name
    return parameters.keys()


@pytest.mark.parametrize('name, options', [
    ('vit', dict(average_top_k_layers=2)),
    ('vit_registers', dict(average_top_k_layers=1, loss_beta=2., loss_scale=0.5, cls_loss=0.7)),
    ('vit_average_pool', dict()),
    ('eva', dict(average_top_k_layers=2, clone_batch=3)),
])
def test_loss_and_gradients_with_dropped_tokens(name, options):
    method = data2vec(name, **options)
    images, noise = images_for(method), noise_for(method)
    output = method(images, noise=noise)
    masks = method.make_mask(noise)
    assert torch.equal(output.mask, masks) and masks.shape == (2, method.clone_batch, 4, 6)
    first, width = method.num_prefix_tokens, 24
    beta, scale = options.get('loss_beta', 0), options.get('loss_scale', 1 / math.sqrt(width))
    errors, class_errors = [], []
    for sample in range(2):
        image = images[sample:sample + 1]
        teacher = method.target_encoder
        outputs = block_outputs(teacher, teacher.blocks[-options.get('average_top_k_layers', 2):], image)
        target = target_of(outputs, first)
        for number in range(method.clone_batch):
            mask = masks[sample, number].flatten()
            visible, masked = torch.where(~mask)[0], torch.where(mask)[0]
            tokens = method.backbone.keep_tokens(method.backbone.embed(image), visible[None])
            encoded = method.backbone.forward_stages(tokens)[0]
            prediction = decoded(method, encoded[first:], visible, masked)
            goal = target[masked]
            torch.testing.assert_close(output.target[sample, number, :len(masked)], goal, rtol=1e-4, atol=1e-4)
            ours = output.prediction[sample, number, :len(masked)]
            torch.testing.assert_close(ours, prediction, rtol=1e-4, atol=1e-4)
            for values, wanted, found in (
                    (prediction, goal, errors), (encoded[:1], target.mean(0, keepdim=True), class_errors)):
                difference = (values - wanted).abs()
                smooth = torch.where(difference < beta, difference.square() / (2 * beta or 1), difference - beta / 2)
                found.append((smooth if beta else difference.square()).sum(-1) * scale)
    has_class_token = name != 'vit_average_pool'
    weight = options.get('cls_loss', 2.56) if has_class_token else 0
    assert method.cls_loss == weight
    expected = torch.cat(errors).sum() / sum(map(len, errors)) + weight * torch.cat(class_errors).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(method, output.loss, expected)


@pytest.mark.parametrize('name', ['swin', 'vit'])
def test_loss_and_gradients_with_all_tokens(name):
    method = data2vec(name, drop_tokens=False, instance_norm_target_layer=False, layer_norm_targets=False)
    images, noise = images_for(method), noise_for(method)
    output = method(images, noise=noise)
    cells = method.make_mask(noise)
    grid = (8, 12) if name == 'swin' else (4, 6)  # swin halves its grid of 16 x 24 patches once
    assert cells.shape == (2, 2, *grid)
    losses = []
    for sample in range(2):
        image = images[sample:sample + 1]
        with torch.no_grad():
            if name == 'swin':  # the stage in front of the last norm
                outputs = block_outputs(method.target_encoder, method.target_encoder.layers[-1:], image)
                outputs = [x.flatten(1, 2) for x in outputs]
            else:
                outputs = [x[:, 1:] for x in block_outputs(method.target_encoder, method.target_encoder.blocks, image)]
            target = torch.stack([standardised(x[0], 1) for x in outputs]).mean(0)
        for number in range(2):
            mask = cells[sample, number]
            factor = 2 if name == 'swin' else 1
            hidden = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
            side = 4 if name == 'swin' else 16
            pixels = hidden.repeat_interleave(side, 0).repeat_interleave(side, 1)
            patches = method.backbone.embed_patches(torch.where(pixels, 0., image))
            shape = hidden[None, ..., None] if name == 'swin' else hidden.flatten()[None, :, None]
            patches = torch.where(shape, method.mask_token.flatten(), patches)
            features = method.backbone.forward_stages(method.backbone.embed_positions(patches))
            features = features.flatten(1, 2) if name == 'swin' else features[:, 1:]
            prediction = method.decoder(features[0][mask.flatten()])
            error = (prediction - target[mask.flatten()]).square().sum(-1) / math.sqrt(24)
            losses.append(error)
    expected = torch.cat(losses).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert 'mask_token' in assert_same_gradients(method, output.loss, expected)


@pytest.mark.parametrize('ratio, blocks', [(0.8, 5), (0.4, 12), (0.8, 0)])
def test_masks_are_those_of_the_reference(ratio, blocks):
    """compute_block_mask_2d of fairseq for centres that the noise chooses, cell by cell."""
    grid, length, count = (14, 10), 3, round(140 * (1 - ratio))
    noise = torch.rand(40, inverse_squares_noise_size(grid, blocks), generator=torch.Generator().manual_seed(0))
    masks = inverse_squares_mask(noise, grid, count, blocks, length)
    assert masks.shape == (40, 140) and torch.equal((~masks).sum(1), torch.full((40,), count))
    seen_more = seen_less = 0
    for row, mask in zip(noise, masks):
        inside = torch.zeros(grid, dtype=torch.bool)
        for number in range(blocks):
            centre = int(row[number] * grid[0]), int(row[blocks + number] * grid[1])
            for i in range(length):
                for j in range(length):
                    cell = centre[0] + i - length // 2, centre[1] + j - length // 2
                    inside[tuple(min(max(at, 0), cells - 1) for at, cells in zip(cell, grid))] = True
        visible, inside = ~mask, inside.flatten()
        if inside.sum() >= count:
            assert not (visible & ~inside).any()
            seen_more += 1
        else:
            assert not (inside & ~visible).any()
            seen_less += 1
    assert seen_less if blocks < 6 else seen_more
    shares = (~masks).float().mean(0)  # cells in no block are as likely as others
    assert blocks or shares.min() > 0.02


def test_defaults_are_those_of_the_paper():
    with torch.device('meta'):
        method = create_mim('data2vec', 'vit_base_patch16_224', average_top_k_layers=10)
    assert (method.num_visible, method.num_squares, method.clone_batch) == (39, 5, 16)
    assert method.layer_average.layers == list(range(2, 12))
    convolutions = method.decoder.layers
    assert len(convolutions) == 6 and {(x.kernel_size, x.groups, x.out_channels) for x in convolutions} == {
        ((3, 3), 16, 768)}
    assert method.loss_scale == 1 / math.sqrt(768) and method.cls_loss == 2.56
    swin = Data2Vec(build('swin'), img_size=(64, 96))
    assert not swin.drop_tokens and swin.clone_batch == 1 and swin.num_visible == 38 and swin.cls_loss == 0  # of 96


@pytest.mark.parametrize('name, drop_tokens', [('vit', True), ('eva', True), ('vit', False)])
def test_each_copy_is_blind_to_its_own_masked_pixels(name, drop_tokens):
    method = data2vec(name, drop_tokens=drop_tokens).eval()
    images, noise = images_for(method), noise_for(method)
    masks = method.make_mask(noise)
    hidden = method.pixel_mask(masks[:, 0])
    assert not torch.equal(masks[:, 0], masks[:, 1])
    for fast_path in (False, True):
        method.fast_path = fast_path
        with torch.no_grad():
            before = method(images, noise=noise)
            after = method(torch.where(hidden, torch.randn_like(images) * 100, images), noise=noise)
        assert torch.equal(before.prediction[:, 0], after.prediction[:, 0])
        assert not torch.equal(before.prediction[:, 1], after.prediction[:, 1])
        assert not torch.equal(before.target, after.target)


@pytest.mark.parametrize('name', ['vit', 'vit_registers'])
def test_fast_path_gives_the_same_step(name):
    method = data2vec(name, clone_batch=4)
    images, noise, steps = images_for(method), noise_for(method), []
    for fast_path in (False, True):
        method.fast_path = fast_path
        method.zero_grad()
        with FlopCounterMode(display=False) as counter:
            output = method(images, noise=noise)
            output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        steps.append((output, gradients, counter.get_total_flops()))
    (plain, expected, flops), (fast, found, fewer) = steps
    assert fast.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6) and fewer < flops
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, parameter


def test_the_teacher_encodes_each_image_once_and_whole():
    method = data2vec(clone_batch=5)
    shapes = []
    method.target_encoder.blocks[0].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    output = method(images_for(method), noise=noise_for(method))
    assert shapes == [(2, 25, 24)] and output.prediction.shape == (2, 5, 13, 24)
    output.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target_encoder.parameters())


def test_momentum_grows_to_its_end_and_stays():
    method = data2vec(ema_decay=0.5, ema_end_decay=0.9, ema_anneal_end=0.5)
    expected = {n: p.clone() for n, p in method.target_encoder.named_parameters()}
    for progress, momentum in ((0., 0.5), (0.25, 0.7), (0.5, 0.9), (1., 0.9)):
        method.update_target(progress)
        for name, parameter in method.target_encoder.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * method.backbone.get_parameter(name)
            torch.testing.assert_close(parameter, expected[name].detach())
    with pytest.raises(ValueError, match='progress must be a number from 0 to 1'):
        method.update_target(1.1)


def test_statistics_of_batch_norms_follow_the_model():
    method = create_mim('data2vec', 'resnet18', img_size=64, mask_ratio=0.5).train()
    method(torch.randn(2, 3, 64, 64)).loss.backward()
    mean = method.backbone.bn1.running_mean
    assert mean.any() and not method.target_encoder.bn1.running_mean.any()
    method.update_target(0.)
    assert torch.equal(method.target_encoder.bn1.running_mean, mean)


def test_a_model_without_outputs_on_the_grid_of_its_features_gives_the_features():
    case = next(case for case in all_cases() if case.name == 'qwen3-classifier-merge')
    method = create('data2vec', case.model, case.model_kwargs, case_sizes(case), registered=False).eval()
    assert method.layer_average.layers == []
    images, noise = images_for(method), noise_for(method)
    target = standardised(standardised(feature_map(method.backbone, images).flatten(2).transpose(1, 2), 1), 2)
    masked = method.make_mask(noise)[:, 0].flatten(1)
    torch.testing.assert_close(method(images, noise=noise).target.flatten(0, 2), target[masked], rtol=1e-4, atol=1e-4)


def test_noise_stands_in_masked_cells_in_training_only():
    method = data2vec(mask_noise_std=1.)
    images, noise = images_for(method), noise_for(method)
    first, second = (method(images, noise=noise).loss.item() for _ in range(2))
    assert first != second
    method.eval()
    assert method(images, noise=noise).loss.item() == method(images, noise=noise).loss.item()


def test_logs_tell_a_collapse():
    method = data2vec()
    healthy = method(images_for(method)).logs
    with torch.no_grad():
        method.target_encoder.patch_embed.proj.weight.zero_()
        method.target_encoder.pos_embed.zero_()
    collapsed = method(images_for(method)).logs
    assert healthy['target_std'] > 0.1 and collapsed['target_std'] < 1e-3
    assert healthy['target_rank'] > 2 * collapsed['target_rank']
    assert variety(torch.ones(2, 4, 8))['target_std'] == 0


def test_a_given_mask():
    method = data2vec().eval()
    images, noise = images_for(method), noise_for(method)
    masks = method.make_mask(noise)
    with torch.no_grad():
        expected = method(images, noise=noise)
        assert torch.equal(method(images, mask=masks).prediction, expected.prediction)
        one = method(images, mask=masks[:, 0])
        torch.testing.assert_close(one.prediction[:, 0], expected.prediction[:, 0])
        assert torch.equal(method(images, mask=masks[:, 0].flatten(1)).prediction, one.prediction)
        states = method.forward_intermediates(images, masks[:, 1])
        assert len(states.hidden_states) == 2 and states.hidden_states[0].shape == (2, 1 + 12, 24)
        assert all(x.shape == (2, 2, 13, 13) for x in method.attention_maps(images, masks[:, 0]).values())
    uneven = masks.clone()
    uneven[0, 0, 0, 0] ^= True
    for bad, message in (
            (uneven, 'same number of cells visible'), (masks.int(), 'must be bool'),
            (torch.ones_like(masks), 'from 1 to 23, got 0'), (masks[:, :, :2], r'\(2, M, 4, 6\)')):
        with pytest.raises(ValueError, match=message):
            method(images, mask=bad)


@pytest.mark.parametrize('name, options, message', [
    ('swin', dict(drop_tokens=True), 'needs its whole grid of tokens'),
    ('swin', dict(cls_loss=1.), 'no class token'),
    ('vit_average_pool', dict(cls_loss=1.), 'no class token'),
    ('vit', dict(average_top_k_layers=3), 'a number from 1 to 2'),
    ('vit', dict(average_top_k_layers=0), 'a number from 1 to 2'),
    ('vit', dict(clone_batch=0), 'clone_batch must be'),
    ('vit', dict(mask_length=0), 'mask_length must be'),
    ('vit', dict(decoder_kernel=4), 'must be odd'),
    ('vit', dict(decoder_groups=5), 'decoder_groups 5 must divide'),
    ('vit', dict(decoder_layers=0), 'decoder_layers must be'),
    ('vit', dict(loss_beta=-1.), 'loss_beta must be 0 or more'),
    ('vit', dict(ema_anneal_end=0), 'ema_anneal_end must be'),
    ('vit', dict(ema_decay=1.5), 'numbers from 0 to 1'),
    ('vit', dict(mask_ratio=0.99), 'masks all'),
])
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        data2vec(name, **options)


def test_views():
    method = data2vec('vit', clone_batch=3).eval()
    images, noise = images_for(method), noise_for(method)
    with torch.no_grad():
        views = method.views(images, noise)
    assert [view.label for view in views] == [
        'original', 'masked copy 1', 'masked copy 2', 'target features', 'predicted features']
    masks = method.make_mask(noise)
    assert torch.equal(views[1].hole, method.pixel_mask(masks[:, 0]))
    assert torch.equal(views[4].hole, ~views[1].hole) and views[4].images.shape == images.shape


def test_a_resumed_method_goes_on_bit_for_bit():
    def train(task, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            method = task.get_method()
            task(images_for(method, seed=step), noise=noise_for(method, seed=step))['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
            task.update_target(step / 4)

    def new():
        task = MaskedImageModelingTask(data2vec(mask_noise_std=0.1, ema_decay=0.5, ema_end_decay=0.9), verbose=False)
        trained = [p for p in task.get_method().parameters() if p.requires_grad]
        return task, torch.optim.AdamW(trained, lr=1e-2)

    task, optimizer = new()
    train(task, optimizer, (0, 1))
    saved = copy.deepcopy((task.get_checkpoint_state(), optimizer.state_dict()))
    train(task, optimizer, (2, 3))
    resumed, other = new()
    with torch.no_grad():
        for parameter in resumed.get_method().parameters():
            parameter.zero_()
    resumed.load_checkpoint_state(saved[0]['state_dict'], saved[0]['task_state'])
    other.load_state_dict(saved[1])
    train(resumed, other, (2, 3))
    state = task.get_method().state_dict()
    assert any(name.startswith('target_encoder.') for name in state)
    for name, tensor in resumed.get_method().state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_models_are_listed_by_what_their_classes_can():
    assert list_mim_models('data2vec') == list_mim_models('simmim')  # all of those give outputs of blocks

    class Own(EmbedStagesMixin, nn.Module):
        def forward_stages(self, embedded):
            return embedded

    assert 'has no forward_intermediates' in Data2Vec.unsupported_reason(Own)
