"""What the protocol means on models with a convolutional stem, whatever their later stages are."""
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from timm.models import has_embed_stages
from timm.utils.model import reparameterize_model

sys.path.append(str(Path(__file__).resolve().parents[1] / 'equivalence'))
import cases_convolutional  # noqa: E402
import cases_hybrid  # noqa: E402
from probe import build as build_case  # noqa: E402

# of each class, and of each kind of stem
MODELS = [
    'byobnet-bottleneck-attention', 'byobnet-conv-mobilevit', 'byobnet-conv-quad-stem', 'byobnet-conv-tiered-stem',
    'byobnet-conv-deep-stem', 'byobnet-conv-resnet-stem', 'byobnet-conv-final-convolution', 'byobnet-conv-rep',
    'byobnet-conv-one', 'cpubone-unfused', 'cpubone-fused', 'csatv2-frequencies', 'edgenext-patches',
    'edgenext-overlapping-patches', 'edgenext-norm-first', 'efficientformer-tokens', 'efficientformerv2-non-square',
    'efficientvit-stages', 'efficientvit-large-stages', 'fastvit-positions', 'iformer-attention', 'lowformer-fused',
    'lowformer-no-attention', 'maxxvit-non-square', 'coatnet-non-square-same-padding', 'metaformer-attention',
    'metaformer-pooling', 'mobilenetv3-attention', 'mobilenetv3-same-padding', 'mobilenetv5-fused-scales',
    'mobilenetv5-fused-stem', 'mobilenetv5-one-scale', 'mobilenetv5-encoder-fused-stem', 'nextvit-attention',
    'shvit-attention', 'swiftformer-attention', 'tinyvit-padded-windows',
    'convnext-patches', 'convnext-overlapping-patches', 'convnext-tiered-stem', 'cspnet-pooled-stem',
    'cspnet-full-resolution', 'cspnext-stem', 'densenet-stem', 'densenet-deep-tiered-stem', 'dla-basic',
    'dpn-small-stem', 'efficientnet-stem', 'efficientnet-same-padding', 'fasternet-patches', 'ghostnet-second',
    'hgnet-second-stem', 'hrnet-classifier', 'inceptionnext-patches', 'lcnetv2-stem', 'nfnet-deep-stem',
    'nfnet-pooled-stem', 'rdnet-patches', 'regnet-stem', 'regnet-convolution-as-stem', 'repghost-stem',
    'repvit-distilled', 'resnet-pooled-stem', 'resnet-deep-tiered-stem', 'resnetv2-stem', 'resnetv2-same-padding',
    'rexnet-stem', 'selecsls-stem', 'senet-rounded-up-pool', 'senet-three-convolutions', 'starnet-stem',
    'tresnet-space-to-depth', 'vgg-first-pool', 'vovnet-stem', 'xceptionaligned-stem', 'xceptionaligned-preact']
REPARAMETERIZED = [
    'byobnet-conv-rep', 'byobnet-conv-one', 'fastvit-positions', 'iformer-attention', 'shvit-attention',
    'lcnetv2-stem', 'repghost-stem', 'repvit-distilled']
BY_NAME = {case.name: case for case in (*cases_hybrid.CASES, *cases_convolutional.CASES)}


def build(name, noise=0.1):
    """A model in eval mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    model = build_case(BY_NAME[name].model, BY_NAME[name].model_kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def image_for(name, model, batch_size=2, seed=1):
    size = BY_NAME[name].probe_kwargs['img_size']
    return torch.randn(batch_size, model.in_chans, *size, generator=torch.Generator().manual_seed(seed))


def run(model, patches, fn):
    """Features of the patches that `fn` makes of the tokens (B, N, C)."""
    return model.forward_stages(model.embed_positions(model.map_tokens(patches, fn)))


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@torch.no_grad()
def test_grid_and_width_are_those_of_the_patches(name):
    model = build(name)
    assert has_embed_stages(model)
    image = image_for(name, model)
    seen = []
    patches = model.embed_patches(image)
    mapped = model.map_tokens(patches, lambda tokens: seen.append(tokens.shape) or tokens.clone())
    height, width = model.patch_grid(image.shape[-2:])
    assert patches.shape == (2, model.patch_dim, height, width) and torch.equal(mapped, patches)
    assert seen == [(2, height * width, model.patch_dim)]


@torch.no_grad()
@pytest.mark.parametrize('size', [(61, 90), (63, 97), (64, 71), (66, 33)])
@pytest.mark.parametrize('name', [name for name in MODELS if not name.startswith(('csatv2', 'tresnet'))])
def test_grid_of_any_image(name, size):
    """These stems take any size, wherever the stages would fail; those left out take whole blocks of pixels."""
    model = build(name)
    assert model.embed_patches(torch.zeros(1, model.in_chans, *size)).shape[-2:] == model.patch_grid(size)


@torch.no_grad()
def test_tokens_are_row_major(name):
    """A change in the image shows in the token whose place in the grid it has, one off where patches overlap."""
    model = build(name)
    image = image_for(name, model, 1)
    height, width = model.patch_grid(image.shape[-2:])
    row, column = 1, width - 2
    top, left = (round(i * size / cells) for i, size, cells in zip(
        (row, column), image.shape[-2:], (height, width)))
    changed = image.clone()
    changed[:, :, top:top + image.shape[-2] // height, left:left + image.shape[-1] // width] += 4.
    seen = []
    for x in (image, changed):
        model.map_tokens(model.embed_patches(x), lambda tokens: seen.append(tokens) or tokens)
    found = divmod(int((seen[1] - seen[0]).norm(dim=-1).argmax()), width)
    assert abs(found[0] - row) <= 1 and abs(found[1] - column) <= 1


@torch.no_grad()
def test_one_patch_changes_the_output(name):
    model = build(name)
    patches = model.embed_patches(image_for(name, model, 1))

    def change(tokens):
        tokens = tokens.clone()
        tokens[:, 3] += 1.
        return tokens
    assert not torch.equal(run(model, patches, change), run(model, patches, torch.clone))


@torch.no_grad()
def test_where_a_token_stands_matters(name):
    """By positions or attention biases, else by the zero padding of convolutions.

    Without positions: CPUBone, EfficientViT, LowFormer, MetaFormer, MobileNetV3 and V5, MobileViT, NextViT, SHViT,
    SwiftFormer. In double precision, since the signal of a new model fades.
    """
    model = build(name).double()
    image = image_for(name, model, 1).double()
    height, width = model.patch_grid(image.shape[-2:])
    token = torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def features_with_token_at(row, column):
        def put(tokens):
            tokens = torch.zeros_like(tokens)
            tokens[:, row * width + column] = token
            return tokens
        features = model.features_to_map(run(model, model.embed_patches(image), put), (height, width))
        return features.flatten(2).sort(dim=2)[0]

    first, second = features_with_token_at(1, 1), features_with_token_at(height // 2, width // 2)
    assert (first - second).abs().max() > 1e-6 * first.abs().max()


@torch.no_grad()
def test_nothing_but_tokens_crosses(name):
    """With every patch replaced, the features do not depend on the image."""
    model = build(name)
    first, second = (
        run(model, model.embed_patches(image_for(name, model, seed=seed)), torch.zeros_like) for seed in (1, 2))
    assert torch.equal(first, second)


@torch.no_grad()
def test_tokens_are_not_changed_in_place(name):
    """Neither before nor in the stages: what goes in may be an expanded mask token."""
    model = build(name).double()  # another memory layout rounds differently
    token = torch.randn(1, 1, model.patch_dim, dtype=torch.float64)
    before = token.clone()
    patches = model.embed_patches(image_for(name, model).double())
    expanded = run(model, patches, lambda tokens: token.expand_as(tokens))
    assert torch.equal(token, before)
    torch.testing.assert_close(expanded, run(model, patches, lambda tokens: token.repeat(*tokens.shape[:2], 1)))


@torch.no_grad()
def test_feature_map_keeps_places(name):
    """The lower left corner of the image changes the lower left quarter of the map most."""
    model = build(name, noise=0.)  # as initialized, blocks mix less
    # of a fixed size, or with a map large enough as it is
    own_size = 'img_size' in BY_NAME[name].model_kwargs or name.startswith(('efficientformer-', 'mobilenetv5-encoder-'))
    height, width = BY_NAME[name].probe_kwargs['img_size'] if own_size else (128, 192)
    image = torch.randn(8, model.in_chans, height, width, generator=torch.Generator().manual_seed(1))
    changed = image.clone()
    changed[:, :, -height // 4:, :width // 4] = image.roll(1, dims=0)[:, :, -height // 4:, :width // 4]
    for module in model.modules():
        module.momentum = 1.  # statistics of these images: without, the signal of a new model fades out
    model.train().forward_features(image)
    model.eval()
    grid = model.patch_grid((height, width))
    first, second = (model.features_to_map(model.forward_features(x), grid) for x in (image, changed))
    assert first.shape[:2] == (8, model.num_features)
    distance = (second - first).norm(dim=1).mean(dim=0, keepdim=True)
    upper_left, upper_right, lower_left, lower_right = F.adaptive_avg_pool2d(distance, 2).flatten()
    assert lower_left > max(upper_left, upper_right, lower_right)


@torch.no_grad()
@pytest.mark.parametrize('options', [dict(), dict(num_vit=2)])
def test_feature_map_of_tokens_is_the_last_intermediate(options):
    name = 'efficientformer-tokens'
    model = build_case(BY_NAME[name].model, {**BY_NAME[name].model_kwargs, **options}).eval()
    image = image_for(name, model)
    expected = model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[0]
    features = model.forward_stages(model.embed(image))
    assert features.shape == (2, 49, 32)
    assert torch.equal(model.features_to_map(features, model.patch_grid((224, 224))), expected)
    with pytest.raises(ValueError, match='49 tokens do not make a 8 x 7 map'):
        model.features_to_map(features, (60, 56))


@torch.no_grad()
def test_pruned_hrnet():
    """Its branches leave the last stage together: one of them alone is the stem, all others are a list."""
    model = build('hrnet-classifier')
    image = image_for('hrnet-classifier', model)
    expected = model.forward_intermediates(image, indices=[0], intermediates_only=True)[0]
    model.prune_intermediate_layers([0])
    grid = model.patch_grid(image.shape[-2:])
    assert torch.equal(model.features_to_map(model.forward_stages(model.embed(image)), grid), expected)


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in MODELS if name != 'hrnet-classifier'])
def test_pruned_model(name):
    """What is left after pruning still composes, with the grid of a stem that may have lost its last layer."""
    model = build(name)
    image = image_for(name, model)
    expected = model.forward_intermediates(image, indices=[1], intermediates_only=True)[0]
    model.prune_intermediate_layers([1], prune_norm=True)
    features = model.forward_stages(model.embed(image))
    assert torch.equal(model.features_to_map(features, model.patch_grid(image.shape[-2:])), expected)

    expected = model.forward_intermediates(image, indices=[0], intermediates_only=True)[0]
    model.prune_intermediate_layers([0], prune_norm=True)
    grid = model.patch_grid(image.shape[-2:])
    assert model.embed_patches(image).shape == (2, model.patch_dim, *grid)
    assert torch.equal(model.features_to_map(model.forward_features(image), grid), expected)


@torch.no_grad()
@pytest.mark.parametrize('name', REPARAMETERIZED)
def test_reparameterized_model(name):
    model = build(name)
    image = image_for(name, model)
    expected = model.forward_features(image)
    model = model.fuse() if hasattr(model, 'fuse') else reparameterize_model(model)
    grid = model.patch_grid(image.shape[-2:])
    assert model.embed_patches(image).shape == (2, model.patch_dim, *grid)
    # normalization is folded into the convolutions: other rounding
    torch.testing.assert_close(model.forward_stages(model.embed(image)), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('name', ['maxxvit-non-square', 'coatnet-non-square-same-padding'])
def test_resized_model(name):
    model = build(name)
    model.set_input_size((128, 160))
    image = torch.randn(1, model.in_chans, 128, 160)
    features = model.forward_stages(model.embed(image))
    assert torch.equal(features, model.forward_intermediates(image)[0])
    assert features.shape[-2:] == (4, 5) and model.patch_grid((128, 160)) == (64, 80)


@torch.no_grad()
def test_dropping_tokens_is_refused(name):
    model = build(name)
    with pytest.raises(NotImplementedError, match=f'{type(model).__name__} cannot drop tokens.*map_tokens'):
        model.keep_tokens(model.embed(image_for(name, model)), torch.zeros(2, 1, dtype=torch.int64))


@torch.no_grad()
def test_foreign_patches_are_refused(name):
    model = build(name)
    with pytest.raises(ValueError, match=f'{type(model).__name__} has patch tokens of width {model.patch_dim}'):
        model.map_tokens(torch.zeros(1, 5, 5, 5), torch.clone)


@torch.no_grad()
def test_list_of_feature_maps_is_refused():
    model = build('fastvit-list-of-features')
    image = image_for('fastvit-list-of-features', model)
    features = model.forward_stages(model.embed(image))
    assert [f.shape[-1] for f in features] == [16, 8, 4, 2]
    with pytest.raises(NotImplementedError, match='fork_feat has a list of feature maps'):
        model.features_to_map(features, model.patch_grid((64, 64)))
