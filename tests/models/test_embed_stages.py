"""What the protocol means, beside equality: a cut in the wrong place would be equal too."""
import pytest
import torch
import torch.nn as nn

import timm
from timm.models import EmbedStagesMixin, create_feature_extractor, has_embed_stages
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, RopeTokens
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

TINY = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
TINY_SWIN = dict(
    img_size=(64, 96), patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0)
DINO = dict(use_rot_pos_emb=True, rope_type='dinov3', rope_rotate_half=True, attn_type='rope')
MULTI_AXIS = dict(use_rot_pos_emb=True, rope_type='mrope', rope_mrope_section=(1, 4, 3), attn_type='rope')

SEQUENCE_MODELS = {
    'vit': lambda **kw: VisionTransformer(**TINY, **kw),
    'vit_registers': lambda **kw: VisionTransformer(**TINY, reg_tokens=3, no_embed_class=True, **kw),
    'vit_no_prefix': lambda **kw: VisionTransformer(**TINY, class_token=False, global_pool='avg', **kw),
    'vit_dynamic': lambda **kw: VisionTransformer(**TINY, dynamic_img_size=True, **kw),
    'deit': lambda **kw: VisionTransformerDistilled(**TINY, global_pool='token', **kw),
    'eva': lambda **kw: Eva(**TINY, **kw),
    'eva_rope': lambda **kw: Eva(**TINY, use_rot_pos_emb=True, **kw),
    'eva_rope_only': lambda **kw: Eva(**TINY, use_rot_pos_emb=True, use_abs_pos_emb=False, **kw),
    'eva_mixed_rope': lambda **kw: Eva(**TINY, use_rot_pos_emb=True, rope_type='mixed', num_reg_tokens=2, **kw),
    'eva_multi_axis_rope': lambda **kw: Eva(**TINY, num_reg_tokens=1, **MULTI_AXIS, **kw),
    'eva_dinov3': lambda **kw: Eva(**TINY, use_abs_pos_emb=False, num_reg_tokens=4, **DINO, **kw),
}
MODELS = {**SEQUENCE_MODELS, 'swin': lambda **kw: SwinTransformer(**TINY_SWIN, **kw)}


def build(name, **kwargs):
    """A model with random weights in eval mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    model = MODELS[name](**kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def image_for(model, batch_size=2):
    return torch.randn(batch_size, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


def first_tensor(embedded):
    return embedded if isinstance(embedded, torch.Tensor) else embedded.tokens


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


@pytest.fixture(params=SEQUENCE_MODELS)
def sequence_model(request):
    return build(request.param)


@torch.no_grad()
def test_grid_and_width_are_those_of_the_patches(model):
    image = image_for(model)
    seen = []
    model.map_tokens(model.embed_patches(image), lambda tokens: seen.append(tokens.shape) or tokens)
    height, width = model.patch_grid(image.shape[-2:])
    assert seen == [(2, height * width, model.patch_dim)]
    assert (height, width) == tuple(s // model.patch_embed.patch_size[0] for s in image.shape[-2:])


@torch.no_grad()
def test_map_tokens_is_row_major_and_leaves_its_input(model):
    image = torch.zeros_like(image_for(model))
    patch = model.patch_embed.patch_size[0]
    row, column = 1, 2
    image[:, :, row * patch:(row + 1) * patch, column * patch:(column + 1) * patch] = 1.
    patches = model.embed_patches(image)
    before = patches.clone()
    seen = []
    model.map_tokens(patches, lambda tokens: seen.append(tokens) or tokens * 0.)
    differs = (seen[0] != seen[0][:, :1]).any(-1)
    _, width = model.patch_grid(image.shape[-2:])
    assert differs.nonzero().tolist() == [[0, row * width + column], [1, row * width + column]]
    assert torch.equal(patches, before)


@torch.no_grad()
def test_one_patch_changes_the_output_and_where_it_stands_matters(model):
    patches = model.embed_patches(image_for(model, 1))
    token = torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2))

    def features_with_token_at(index):
        def put(tokens):
            tokens = torch.zeros_like(tokens)
            tokens[:, index] = token
            return tokens
        return model.forward_stages(model.embed_positions(model.map_tokens(patches, put)))

    first, second = features_with_token_at(3), features_with_token_at(4)
    nothing = model.forward_stages(model.embed_positions(model.map_tokens(patches, torch.zeros_like)))
    assert not torch.allclose(first, nothing, atol=1e-3)
    # a model without positions would give the same set of features for both
    assert not torch.allclose(
        first.flatten(1, -2).sort(dim=1)[0], second.flatten(1, -2).sort(dim=1)[0], atol=1e-3)


@torch.no_grad()
def test_nothing_but_tokens_crosses(model):
    """With every patch replaced, the features do not depend on the image."""
    token = torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2))
    first, second = (
        model.forward_stages(model.embed_positions(model.map_tokens(model.embed_patches(image), token.expand_as)))
        for image in (image_for(model), 1 - image_for(model)))
    assert torch.equal(first, second)


@torch.no_grad()
def test_embed_positions_takes_an_expanded_token(model):
    patches = model.embed_patches(image_for(model))
    token = torch.randn(1, 1, model.patch_dim)
    expanded = model.map_tokens(patches, lambda tokens: token.expand_as(tokens))
    before = token.clone()
    model.embed_positions(expanded)
    assert torch.equal(token, before)


@torch.no_grad()
def test_feature_map_keeps_places(model):
    """The map's cell that the last row and first column of patches changes most is its lower left corner."""
    image = image_for(model, 1)
    changed = image.clone()
    corner = 16
    changed[:, :, -corner:, :corner] += 3.
    grid = model.patch_grid(image.shape[-2:])
    maps = [model.features_to_map(model.forward_features(i), grid) for i in (image, changed)]
    assert maps[0].shape[1] == model.num_features
    distance = (maps[1] - maps[0]).norm(dim=1)[0]
    height, width = distance.shape
    assert height / width == grid[0] / grid[1]
    row, column = divmod(int(distance.argmax()), width)
    assert row >= height / 2 and column < width / 2


def test_feature_map_refuses_another_grid(sequence_model):
    features = sequence_model.forward_features(image_for(sequence_model))
    height, width = sequence_model.patch_grid((32, 48))
    with pytest.raises(ValueError, match=f'{height + 1} x {width} map'):
        sequence_model.features_to_map(features, (height + 1, width))


@torch.no_grad()
def test_keeping_all_tokens_is_the_identity(sequence_model):
    embedded = sequence_model.embed(image_for(sequence_model))
    height, width = sequence_model.patch_grid((32, 48))
    everything = torch.arange(height * width).expand(2, -1)
    kept = sequence_model.keep_tokens(embedded, everything)
    assert torch.equal(first_tensor(kept), first_tensor(embedded))
    # rotary embeddings are shared before and per sample after: other strides in the products, other rounding
    torch.testing.assert_close(
        sequence_model.forward_stages(kept), sequence_model.forward_stages(embedded), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(('name', 'patch_drop'), [
    *((name, False) for name in SEQUENCE_MODELS),
    # upstream's patch dropout spares one prefix token of a distilled model, which has two
    *((name, True) for name in SEQUENCE_MODELS if name != 'deit'),
])
def test_dropped_tokens_equal_masked_attention(name, patch_drop):
    """Attention that may not look at a token is attention without the token."""
    model = build(name, **(dict(patch_drop_rate=0.25) if patch_drop else {}))
    if patch_drop:
        model.patch_drop.train()
    embedded = model.embed(image_for(model))
    prefix = model.num_prefix_tokens
    num_patches = first_tensor(embedded).shape[1] - prefix
    assert num_patches == (18 if patch_drop else 24)
    keep = torch.stack([torch.randperm(num_patches, generator=torch.Generator().manual_seed(s))[:7] for s in (3, 4)])

    kept = model.forward_stages(model.keep_tokens(embedded, keep))

    visible = torch.zeros(2, prefix + num_patches, dtype=torch.bool)
    visible[:, :prefix] = True
    visible.scatter_(1, keep + prefix, True)
    masked = model.forward_stages(embedded, attn_mask=visible[:, None, None, :].expand(-1, 1, visible.shape[1], -1))
    places = torch.cat([torch.arange(prefix).expand(2, -1), keep + prefix], dim=1)
    expected = masked.gather(1, places.unsqueeze(-1).expand(-1, -1, masked.shape[-1]))
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)


def test_swin_refuses_to_drop_tokens():
    model = build('swin')
    with pytest.raises(NotImplementedError, match='SwinTransformer cannot drop tokens.*map_tokens'):
        model.keep_tokens(model.embed(image_for(model)), torch.zeros(2, 1, dtype=torch.int64))


def test_map_tokens_refuses_a_foreign_tensor():
    model = build('vit')
    with pytest.raises(ValueError, match='width 48, got a tensor of shape'):
        model.map_tokens(torch.zeros(2, 24, 47), torch.clone)


@torch.no_grad()
def test_map_tokens_keeps_what_comes_with_the_tokens():
    model = build('vit')
    tokens, context = torch.randn(1, 24, 48), [4, 6]
    mapped = model.map_tokens(RopeTokens(tokens, context), lambda t: t + 1.)
    assert isinstance(mapped, RopeTokens) and mapped.rope is context and torch.equal(mapped.tokens, tokens + 1.)
    mapped = model.map_tokens((tokens, context), lambda t: t + 1.)
    assert type(mapped) is tuple and mapped[1] is context and torch.equal(mapped[0], tokens + 1.)


@torch.no_grad()
def test_embedding_of_another_size_has_its_grid():
    model = build('vit_dynamic')
    image = torch.randn(1, 3, 24, 40)
    assert model.patch_grid((24, 40)) == (3, 5)
    features = model.forward_stages(model.embed(image))
    assert model.features_to_map(features, (3, 5)).shape == (1, 48, 3, 5)


class OnlyForwardFeatures(VisionTransformer):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x, attn_mask, is_causal) * 2


class OwnStages(OnlyForwardFeatures):
    def forward_stages(self, x, attn_mask=None, is_causal=False):
        return super().forward_stages(x, attn_mask, is_causal) * 2


class OwnPositions(VisionTransformer):
    def _pos_embed(self, x):
        return super()._pos_embed(x) + 1


def test_who_has_the_protocol():
    assert all(has_embed_stages(cls) for cls in (VisionTransformer, VisionTransformerDistilled, Eva, SwinTransformer))
    assert has_embed_stages(build('deit')) and has_embed_stages(OwnPositions) and has_embed_stages(OwnStages)
    assert not has_embed_stages(OnlyForwardFeatures)
    assert not has_embed_stages(EmbedStagesMixin)
    assert has_embed_stages('swin_tiny_patch4_window7_224.ms_in1k') and has_embed_stages('resnet50')
    assert has_embed_stages(timm.create_model('resnet18', device='meta'))
    # features of several stages, not those of forward_features
    assert not has_embed_stages(timm.create_model('resnet18', features_only=True, device='meta'))
    assert not has_embed_stages(nn.Linear) and not has_embed_stages(nn.Linear(1, 1))


@torch.no_grad()
def test_fx_features(model):
    image = image_for(model)
    last = 'norm'
    features = create_feature_extractor(model, [last])(image)[last]
    assert features.shape == model.forward_features(image).shape
    torch.testing.assert_close(features, model.forward_features(image))
