import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm
from timm.mim import IJEPA, create_mim, keyed_noise, official_multi_block_masks
from timm.mim.teacher import variety
from timm.models.vision_transformer import VisionTransformer
from tiny_models import build, images_for


def ijepa(name='vit', **kwargs):
    torch.manual_seed(0)
    options = {**dict(predictor_dim=24, predictor_depth=2, predictor_heads=2), **kwargs}
    method = IJEPA(build(name), img_size=(64, 96), **options)
    with torch.no_grad():
        for parameter in method.predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method


def noise_for(method, batch_size=2, seed=3):
    return torch.rand(method.noise_shape(batch_size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', ['vit', 'vit_average_pool', 'vit_registers'])
def test_loss_and_gradients_of_the_predictor_are_lightlys(name):
    """Their predictor with our weights; features and targets by hand, a sample and a target at a time."""
    predictors = pytest.importorskip('lightly.models.modules.ijepa_timm')
    method = ijepa(name)
    theirs = predictors.IJEPAPredictorTIMM(
        num_patches=16, depth=2, mlp_dim=24, predictor_embed_dim=24, num_heads=2)
    # theirs is built for a square, and takes the positions of a 4 x 6 grid
    theirs.decoder.pos_embed = nn.Parameter(torch.zeros(1, 24, 24), requires_grad=False)
    state = {f'decoder.{key}': value for key, value in method.predictor.state_dict().items()}
    state.update({f'predictor_embed.{key}': value for key, value in method.predictor_embed.state_dict().items()})
    state.update({f'predictor_proj.{key}': value for key, value in method.predictor_proj.state_dict().items()})
    theirs.load_state_dict(state)

    images, noise = images_for(method), noise_for(method)
    output = method(images, noise=noise)
    masks = method.make_mask(noise)
    encoder, prefix = copy.deepcopy(method.backbone), method.num_prefix_tokens
    assert torch.equal(output.mask, ~torch.zeros(2, 24, dtype=torch.bool).scatter(1, masks.context, True).view(2, 4, 6))
    losses = []
    for sample in range(2):
        image, context = images[sample:sample + 1], masks.context[sample:sample + 1]
        with torch.no_grad():
            features = encoder.forward_features(image)[:, prefix:]
            features = (features - features.mean(-1, keepdim=True)) / (
                features.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        tokens = method.backbone.embed(image)
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:][:, context[0]]], 1)
        seen = method.backbone.forward_stages(tokens)[:, prefix:]
        for block in range(4):
            target = masks.targets[sample:sample + 1, block]
            prediction = theirs(seen, masks_x=context, masks=target)
            torch.testing.assert_close(output.target[sample, block], features[0, target[0]], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(output.prediction[sample, block], prediction[0], rtol=1e-4, atol=1e-5)
            error = (prediction[0] - features[0, target[0]]).abs()
            losses.append(torch.where(error < 1, error.square() / 2, error - 0.5).mean())
    loss = torch.stack(losses).mean()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)

    ours = torch.autograd.grad(output.loss, [p for p in method.parameters() if p.requires_grad])
    parameters = [p for p in method.backbone.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters + [p for p in theirs.parameters() if p.requires_grad])
    assert len(ours) == len(expected)
    by_name = dict(zip([n for n, p in method.named_parameters() if p.requires_grad], ours))
    names = [n for n, p in method.named_parameters() if n.startswith('backbone.') and p.requires_grad]
    names += [n.replace('decoder.', 'predictor.', 1) for n, p in theirs.named_parameters() if p.requires_grad]
    for parameter_name, gradient in zip(names, expected):
        difference = (by_name[parameter_name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference < 1e-4, parameter_name


def test_target_encoder_is_the_methods_and_not_the_models():
    method = ijepa()
    assert not any('target' in name for name in method.backbone.state_dict())
    shared = {id(p) for p in method.backbone.parameters()} & {id(p) for p in method.target_encoder.parameters()}
    assert not shared
    assert not any(p.requires_grad for p in method.target_encoder.parameters())
    own = [name for name in method.state_dict() if not name.startswith('backbone.')]
    assert {name.split('.')[0] for name in own} == {
        'target_encoder', 'predictor_embed', 'predictor', 'predictor_proj'}
    method(images_for(method), noise=noise_for(method)).loss.backward()
    assert all(p.grad is None for p in method.target_encoder.parameters())


def test_target_encoder_is_always_in_eval_mode():
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=64, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.5, proj_drop_rate=0.5)
    method = IJEPA(backbone, predictor_dim=24, predictor_depth=1, num_targets=2).train()
    assert method.backbone.training and not any(m.training for m in method.target_encoder.modules())
    images, noise = images_for(method), noise_for(method)
    assert torch.equal(method(images, noise=noise).target, method(images, noise=noise).target)


def test_update_is_an_average_of_parameters():
    method = ijepa(momentum=(0.9, 1.0))
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: p.clone() for name, p in method.target_encoder.named_parameters()}
    online = {name: p.clone() for name, p in method.backbone.named_parameters()}
    for progress, momentum in ((0., 0.9), (0.5, 0.95), (1., 1.)):
        method.update_target(progress)
        for name, parameter in method.target_encoder.named_parameters():
            before[name] = momentum * before[name] + (1 - momentum) * online[name]
            torch.testing.assert_close(parameter.detach(), before[name])
    for name, parameter in method.backbone.named_parameters():
        assert torch.equal(parameter, online[name])
    assert any(not torch.equal(before[name], online[name]) for name in before)


def test_update_leaves_buffers_alone():
    backbone = build('vit')
    backbone.register_buffer('table', torch.zeros(3))
    method = IJEPA(backbone, img_size=(64, 96), predictor_dim=24, predictor_depth=1, predictor_heads=2)
    backbone.table += 1
    method.update_target(0.)
    assert not method.target_encoder.table.any()


def test_training_reaches_the_target_by_the_update_alone():
    method = ijepa(momentum=(0.5, 0.5))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    images, noise = images_for(method), noise_for(method)
    first = method(images, noise=noise)
    first.loss.backward()
    optimizer.step()
    assert torch.equal(method(images, noise=noise).target, first.target)
    method.update_target(0.)
    assert not torch.equal(method(images, noise=noise).target, first.target)


def test_each_target_is_predicted_by_itself():
    method = ijepa().eval()
    images, noise = images_for(method), noise_for(method)
    masks = method.make_mask(noise)
    with torch.no_grad():
        output = method(images, mask=masks)
        other = masks.targets.clone()
        other[:, 1:] = other[:, 1:].flip(0)
        changed = method(images, mask=(masks.context, other))
    assert torch.equal(method(images, noise=noise).prediction, output.prediction)
    torch.testing.assert_close(changed.prediction[:, 0], output.prediction[:, 0])
    assert not torch.allclose(changed.prediction[:, 1:], output.prediction[:, 1:])


@torch.no_grad()
def test_prediction_sees_the_context_only_and_the_place_of_the_target():
    method = ijepa('vit_registers').eval()
    images, noise = images_for(method), noise_for(method)
    output = method(images, noise=noise)
    pixels = method.pixel_mask(output.mask)
    unseen = method(torch.where(pixels, torch.randn_like(images), images), noise=noise)
    assert torch.equal(unseen.prediction, output.prediction)
    assert not torch.equal(unseen.target, output.target)
    seen = method(torch.where(pixels, images, torch.randn_like(images)), noise=noise)
    assert not torch.allclose(seen.prediction, output.prediction)
    patches = output.prediction[0, 0]  # one block: its patches differ by their positions alone
    assert (torch.cdist(patches, patches) + torch.eye(len(patches))).min() > 1e-3


def test_targets_are_normalised():
    target = ijepa()(torch.randn(2, 3, 64, 96)).target
    torch.testing.assert_close(target.mean(-1), torch.zeros(target.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.square().mean(-1), torch.ones(target.shape[:-1]), rtol=1e-3, atol=0)


def test_logs_of_known_features():
    generator = torch.Generator().manual_seed(0)
    constant = variety(torch.ones(2, 4, 3, 8))
    assert constant['target_std'] == 0 and constant['target_rank'] == 0
    line = variety(torch.randn(50, 1, 10, 1, generator=generator) * torch.randn(8, generator=generator))
    assert line['target_rank'].item() == pytest.approx(1, rel=1e-4)
    normal = variety(3 * torch.randn(5000, 1, 4, 8, generator=generator))
    # 20000 samples: deviations of 1 in 140
    assert normal['target_std'].item() == pytest.approx(3, rel=0.02)
    assert normal['target_rank'].item() == pytest.approx(8, rel=0.02)
    plane = torch.zeros(5000, 1, 4, 8)
    plane[..., :2] = torch.randn(5000, 1, 4, 2, generator=generator)
    assert variety(plane)['target_rank'].item() == pytest.approx(2, rel=0.02)
    with torch.autocast('cpu', torch.bfloat16):
        assert variety(plane)['target_rank'].dtype == torch.float32


def test_logs_tell_a_collapse():
    method = ijepa()
    healthy = method(images_for(method)).logs
    with torch.no_grad():
        method.target_encoder.patch_embed.proj.weight.zero_()
        method.target_encoder.pos_embed.zero_()
    collapsed = method(images_for(method)).logs
    assert healthy['target_std'] > 0.1 and collapsed['target_std'] < 1e-3
    assert not healthy['target_std'].requires_grad


def test_official_sampler():
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=(160, 192), patch_size=16, embed_dim=24, depth=1, num_heads=2)
    method = IJEPA(backbone, predictor_dim=24, predictor_depth=1, sampler='official')
    noise = noise_for(method, 3)
    assert noise.shape == (3, 2)
    masks = method.make_mask(noise)
    step, seed = (noise[0] * 2 ** 24).long().tolist()
    expected = official_multi_block_masks((10, 12), 3, step, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(masks, expected))
    images = images_for(method, 3)
    output = method(images, noise=noise)
    assert output.loss.isfinite() and torch.equal(method(images, mask=tuple(expected)).loss, output.loss)


def test_masks_as_pictures():
    method = ijepa()
    noise = noise_for(method)
    masks = method.make_mask(noise)
    targets = method.target_mask(masks.targets)
    assert targets.shape == (2, 4, 4, 6) and targets.dtype == torch.bool
    for sample in range(2):
        for block in range(4):
            places = targets[sample, block].flatten().nonzero().flatten()
            assert torch.equal(places, masks.targets[sample, block])


def test_keyed_masks_do_not_depend_on_how_a_batch_is_split():
    method = ijepa().eval()
    images = images_for(method, 4)
    size = method.noise_shape(4)[1]
    whole = method(images, noise=keyed_noise(0, 7, torch.arange(4), size)).mask
    for rank in (0, 1):
        positions = torch.arange(rank, 4, 2)
        assert torch.equal(method(images[rank::2], noise=keyed_noise(0, 7, positions, size)).mask, whole[rank::2])


def test_initialisation_of_the_predictor():
    torch.manual_seed(0)
    method = IJEPA(build('vit'), img_size=(64, 96), predictor_dim=384, predictor_depth=3, predictor_heads=12)
    assert method.predictor_proj.weight.std().item() == pytest.approx(.02, rel=0.05)
    for depth, block in enumerate(method.predictor.blocks, start=1):
        assert block.attn.qkv.weight.std().item() == pytest.approx(.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(.02 / (2 * depth) ** 0.5, rel=0.05)
    assert all(not m.bias.any() for m in method.predictor.modules() if isinstance(m, nn.Linear))
    assert method.predictor.mask_token.std().item() == pytest.approx(.02, rel=0.2)


@pytest.mark.parametrize('num_heads, width, expected', [(2, 24, 2), (12, 384, 12), (14, 384, 12), (5, 384, 4)])
def test_heads_of_the_predictor(num_heads, width, expected):
    backbone = VisionTransformer(img_size=64, embed_dim=num_heads * 4, depth=1, num_heads=num_heads)
    method = IJEPA(backbone, predictor_dim=width, predictor_depth=1, num_targets=2)
    assert method.predictor.blocks[0].attn.num_heads == expected


def test_parameters_without_weight_decay():
    assert ijepa(predictor_pos_embed='learn').no_weight_decay() == {
        'predictor.pos_embed', *(f'backbone.{name}' for name in build('vit').no_weight_decay())}


def test_smooth_l1_is_that_of_torch():
    output = ijepa()(torch.randn(2, 3, 64, 96))
    assert output.loss.item() == pytest.approx(F.smooth_l1_loss(output.prediction, output.target, beta=1.).item())


@pytest.mark.parametrize('sampler', ['unbiased', 'official'])
def test_mask_units(sampler):
    """Context and targets consist of whole units of 1 x 2 patches, in row-major order, and the loss is defined."""
    torch.manual_seed(0)
    method = IJEPA(
        VisionTransformer(img_size=(64, 96), patch_size=4, embed_dim=24, depth=1, num_heads=2), predictor_dim=24,
        predictor_depth=1, predictor_heads=2, mask_unit=(4, 8), sampler=sampler, num_targets=2)
    plain = IJEPA(
        VisionTransformer(img_size=(64, 96), patch_size=(4, 8), embed_dim=24, depth=1, num_heads=2), predictor_dim=24,
        predictor_depth=1, predictor_heads=2, sampler=sampler, num_targets=2)
    noise = noise_for(plain)
    assert method.noise_shape(2) == noise.shape
    masks, units = method.make_mask(noise), plain.make_mask(noise)
    for patches, indices in zip(masks, units):
        expected = torch.stack([2 * indices, 2 * indices + 1], -1).flatten(-2)  # a row of patches has twice the units
        assert torch.equal(patches, expected.sort(-1).values)
    assert method(images_for(method), noise=noise).loss.isfinite()
    with pytest.raises(ValueError, match='mask_unit 12 does not fit image height 64 with patch stride 4'):
        IJEPA(VisionTransformer(img_size=(64, 96), patch_size=4, embed_dim=24, depth=1, num_heads=2), mask_unit=12)


@pytest.mark.parametrize('name', ['ijepa', 'capi'])
def test_batch_norms_of_the_target_encoder_have_the_statistics_of_the_model(name):
    """The stem of ViT-MCI has batch norms; the target encoder runs them in eval mode, and is the encoder to keep."""
    options = dict(num_clusters=8) if name == 'capi' else {}
    model = timm.create_model('vit_base_mci_224', img_size=128, depth=1)
    method = create_mim(name, model, predictor_depth=1, **options).train()
    method(torch.randn(2, 3, 128, 128)).loss.backward()
    method.update_target(0.)
    mean = dict(method.backbone.named_buffers())['patch_embed.backbone.0.bn.running_mean']
    assert mean.any() and torch.equal(method.encoder.get_buffer('patch_embed.backbone.0.bn.running_mean'), mean)
