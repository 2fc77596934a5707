"""What the protocol means on the plain transformers: BEiT, SAM, NaFlex, Gemma4, Qwen3, CaiT, XCiT, VOLO, TNT, CoaT."""
import copy

import pytest
import torch

from timm.models import has_embed_stages
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.coat import CoaT
from timm.models.convit import ConVit
from timm.models.crossvit import CrossVit
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.naflexvit import NaFlexVit, batch_patchify
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from timm.models.tnt import TNT
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.volo import VOLO
from timm.models.xcit import Xcit

WIDE = (48, 72)
PLAIN = dict(img_size=WIDE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
SQUARE = dict(PLAIN, img_size=(48, 48))
NAFLEX = dict(
    patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, pos_embed_grid_size=(6, 9), global_pool='avg')
NAFLEX_BRANCHES = {
    'naflex': dict(class_token=True, reg_tokens=1),
    'naflex_factorized': dict(pos_embed='factorized'),
    'naflex_key_mask': dict(use_key_only_attn_mask=True),
    'naflex_axial': dict(pos_embed='none', rope_type='axial', class_token=True),
    'naflex_mixed': dict(rope_type='mixed', reg_tokens=1),
    'naflex_multi_axis': dict(rope_type='mrope', rope_mrope_section=(1, 4, 3), class_token=True),
    'naflex_dinov3': dict(rope_type='dinov3', rope_rotate_half=True),
}
GEMMA4 = dict(
    img_size=WIDE, patch_size=8, embed_dim=48, depth=2, num_heads=3, head_dim=16, intermediate_size=64,
    position_embedding_size=16)
ROPE = dict(img_size=WIDE, patch_size=8, embed_dim=48, depth=2, num_heads=3)
COAT = dict(img_size=(64, 96), patch_size=4, embed_dims=(16, 32, 32, 32), serial_depths=(1, 1, 1, 1), num_classes=0)
MERGED = dict(encoder_pool='merge', merge_size=3, out_features=24)
CROSSVIT = dict(
    img_size=48, img_scale=(1.0, 2 / 3), patch_size=(12, 16), embed_dim=(32, 48), num_heads=(2, 3),
    depth=((1, 1, 0),), num_classes=0)


def volo(**kwargs):
    return VOLO(**{**dict(
        img_size=WIDE, layers=(1, 1, 1), embed_dims=(16, 32, 32), num_heads=(2, 4, 4), stem_hidden_dim=8, patch_size=4,
        downsamples=(True, False, False), outlook_attention=(True, False, False), num_classes=0), **kwargs})


def tnt(**kwargs):
    return TNT(**{**dict(
        img_size=WIDE, patch_size=8, embed_dim=48, inner_dim=16, depth=2, num_heads_inner=2, num_heads_outer=3,
        num_classes=0), **kwargs})


# model, height and width of its images
MODELS = {
    'beit': (lambda: Beit(**PLAIN, use_rel_pos_bias=True, use_abs_pos_emb=False), WIDE),
    'beit_shared': (lambda: Beit(**PLAIN, use_shared_rel_pos_bias=True), WIDE),
    'beit_absolute': (lambda: Beit(**PLAIN), WIDE),
    'relpos': (lambda: VisionTransformerRelPos(**PLAIN, rel_pos_dim=16), WIDE),
    'relpos_class_token': (lambda: VisionTransformerRelPos(**PLAIN, rel_pos_type='bias', class_token=True), WIDE),
    'sam': (lambda: VisionTransformerSAM(**PLAIN, window_size=4, use_rel_pos=True, neck_chans=16), WIDE),
    **{name: (lambda kw=kw: NaFlexVit(**NAFLEX, **kw), WIDE) for name, kw in NAFLEX_BRANCHES.items()},
    'naflex_convolution': (lambda: NaFlexVit(**{**NAFLEX, 'embed_proj_type': 'conv', 'global_pool': 'map'}), WIDE),
    'gemma4_encoder': (lambda: Gemma4VitEncoder(**GEMMA4), WIDE),
    'gemma4': (lambda: Gemma4VitClassifier(**GEMMA4), WIDE),
    'gemma4_soft': (lambda: Gemma4VitClassifier(**GEMMA4, encoder_pool='soft'), WIDE),
    'qwen3_encoder': (lambda: Qwen3VitEncoder(**ROPE, pos_embed_grid_size=6, merge_size=3), WIDE),
    'qwen3': (lambda: Qwen3VitClassifier(**ROPE, pos_embed_grid_size=6), WIDE),
    'qwen3_merge': (lambda: Qwen3VitClassifier(**ROPE, pos_embed_grid_size=6, **MERGED), WIDE),
    'deepseek_encoder': (lambda: DeepseekVitEncoder(**ROPE, out_features=24), WIDE),
    'deepseek': (lambda: DeepseekVitClassifier(**ROPE), WIDE),
    'deepseek_align': (lambda: DeepseekVitClassifier(**ROPE, encoder_pool='align', out_features=24), WIDE),
    'cait': (lambda: Cait(**PLAIN, init_values=0.1), WIDE),
    'convit': (lambda: ConVit(**SQUARE, local_up_to_layer=1), (48, 48)),
    'xcit': (lambda: Xcit(**{**PLAIN, 'num_heads': 4, 'embed_dim': 64}), WIDE),
    'volo': (volo, WIDE),
    'volo_no_class_token': (lambda: volo(post_layers=None, global_pool='avg'), WIDE),
    'tnt': (tnt, WIDE),
    'tnt_legacy': (lambda: tnt(legacy=True), WIDE),
    'coat': (lambda: CoaT(**COAT), (64, 96)),
    'coat_parallel': (lambda: CoaT(**COAT, parallel_depth=1), (64, 96)),
}
# no patch tokens apart from positions, no one map
CROSSVIT_MODEL = {'crossvit': (lambda: CrossVit(**CROSSVIT), (48, 48))}
KEEPS = [
    *NAFLEX_BRANCHES, 'naflex_convolution', 'gemma4_encoder', 'gemma4', 'qwen3_encoder', 'qwen3',
    'deepseek_encoder', 'deepseek', 'cait', 'tnt', 'tnt_legacy',
]


def build(name):
    """A model with random weights in eval mode, every parameter away from its initial value; and an image for it."""
    torch.manual_seed(0)
    factory, size = {**MODELS, **CROSSVIT_MODEL}[name]
    model = factory().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, image_of(size)


def image_of(size, seed=1, batch_size=2):
    return torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(seed))


def with_tokens(model, patches, tokens):
    """Features of the patches with other tokens, one (C,) or all (B, N, C) of them."""
    mapped = model.map_tokens(patches, lambda old: tokens.expand_as(old))
    features = model.forward_stages(model.embed_positions(mapped))
    return features[-1] if isinstance(features, list) else features


def first_tensor(value):
    return value if isinstance(value, torch.Tensor) else value[0]


def tokens_of(model, image):
    seen = []
    model.map_tokens(model.embed_patches(image), lambda tokens: seen.append(tokens) or tokens)
    return seen[0]


@pytest.mark.parametrize('name', [*MODELS, 'crossvit'])
def test_has_the_protocol(name):
    assert has_embed_stages(build(name)[0])


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_halves_compose_and_have_the_grid_that_they_say(name):
    model, image = build(name)
    patches = model.embed_patches(image)
    assert torch.equal(
        first_tensor(model.forward_stages(model.embed_positions(patches))),
        first_tensor(model.forward_features(image)))
    height, width = model.patch_grid(image.shape[-2:])
    assert tokens_of(model, image).shape == (2, height * width, model.patch_dim)
    assert height / width == image.shape[-2] / image.shape[-1]


@torch.no_grad()
@pytest.mark.parametrize('name,size', [
    ('xcit', (37, 43)), ('xcit', (8, 71)), ('sam', (40, 64)), ('qwen3', (40, 64)), ('deepseek_encoder', (40, 64)),
    ('gemma4', (40, 64)), ('naflex', (40, 64)), ('volo', (48, 73)), ('volo', (47, 75)),
])
def test_grid_of_other_sizes(name, size):
    model, _ = build(name)
    height, width = model.patch_grid(size)
    assert tokens_of(model, image_of(size)).shape[1] == height * width


def test_grid_of_padded_images():
    model = DeepseekVitEncoder(**ROPE, out_features=24, dynamic_img_pad=True)
    assert model.patch_grid((41, 64)) == (6, 8) and tokens_of(model, image_of((41, 64))).shape[1] == 48
    model = NaFlexVit(**NAFLEX, dynamic_img_pad=True)
    assert model.patch_grid((41, 64)) == (6, 8) and tokens_of(model, image_of((41, 64))).shape[1] == 48


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_one_patch_changes_the_output_and_where_it_stands_matters(name):
    model, image = build(name)
    patches = model.embed_patches(image[:1])
    old = tokens_of(model, image[:1])
    before = old.clone()
    token = 3 * torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2))

    def features_with_token_at(index):
        tokens = torch.zeros_like(old)
        tokens[:, index] = token
        return with_tokens(model, patches, tokens)

    nothing = with_tokens(model, patches, torch.zeros(model.patch_dim))
    # in different 3 x 3 blocks and columns, so that merged tokens differ too
    first, second = features_with_token_at(0), features_with_token_at(4)
    assert not torch.allclose(first, nothing, atol=1e-3)
    first, second = (f.permute(0, 2, 3, 1) if name == 'sam' else f for f in (first, second))
    # a model without positions would give the same set of features for both
    assert not torch.allclose(first.flatten(1, -2).sort(dim=1)[0], second.flatten(1, -2).sort(dim=1)[0], atol=1e-3)
    assert torch.equal(tokens_of(model, image[:1]), before)


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_nothing_of_the_image_remains_when_every_patch_is_replaced(name):
    model, image = build(name)
    token = torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2))
    kept = token.clone()
    features = [with_tokens(model, model.embed_patches(i), token) for i in (image, image_of(image.shape[-2:], seed=5))]
    assert torch.equal(*features)
    assert torch.equal(token, kept), 'positions were added in place'


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_feature_map_keeps_places(name):
    """The map changes most where the image does: in its lower left corner."""
    model, image = build(name)
    changed = image.clone()
    height, width = image.shape[-2:]
    changed[:, :, -height // 3:, :width // 3] += 2.
    grid = model.patch_grid((height, width))
    maps = [model.features_to_map(model.forward_features(i), grid) for i in (image, changed)]
    distance = (maps[1] - maps[0]).norm(dim=1)[0]
    assert distance.shape[0] / distance.shape[1] == pytest.approx(height / width, rel=0.05)
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    assert row >= distance.shape[0] / 2 and column < distance.shape[1] / 2


@torch.no_grad()
@pytest.mark.parametrize('name', KEEPS)
def test_keeping_all_tokens_is_the_identity(name):
    model, image = build(name)
    embedded = model.embed(image)
    height, width = model.patch_grid(image.shape[-2:])
    kept = model.keep_tokens(embedded, torch.arange(height * width).expand(2, -1))
    assert torch.equal(first_tensor(kept), first_tensor(embedded))
    # rotary embeddings are shared before and per sample after: other strides in the products, other rounding
    features = model.forward_features(image)
    features = features.reshape(2, -1, features.shape[-1])
    torch.testing.assert_close(model.forward_stages(kept), features, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('name', KEEPS)
def test_order_and_steps_do_not_matter(name):
    """Tokens go by their places: kept in two steps and another order they give the same features in that order."""
    model, image = build(name)
    embedded = model.embed(image)
    height, width = model.patch_grid(image.shape[-2:])
    first, then = (
        torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s))[:k] for s in (3, 4)])
        for n, k in ((height * width, 11), (11, 7)))
    two_steps = model.forward_stages(model.keep_tokens(model.keep_tokens(embedded, first), then))
    chosen, order = first.gather(1, then).sort(dim=1)
    expected = model.forward_stages(model.keep_tokens(embedded, chosen))
    prefix = expected.shape[1] - 7
    torch.testing.assert_close(two_steps[:, :prefix], expected[:, :prefix], rtol=1e-5, atol=1e-5)
    two_steps = two_steps[:, prefix:].gather(1, order.unsqueeze(-1).expand(-1, -1, expected.shape[-1]))
    torch.testing.assert_close(two_steps, expected[:, prefix:], rtol=1e-5, atol=1e-5)


def crop_indices(grid, crop):
    rows, columns = torch.meshgrid(torch.arange(crop[0]), torch.arange(crop[1]), indexing='ij')
    return (rows * grid[1] + columns).flatten().expand(2, -1)


def crop_positions(positions, prefix, grid, crop):
    indices = crop_indices(grid, crop)[0] + prefix
    return torch.nn.Parameter(torch.cat([positions[:, :prefix], positions[:, indices]], dim=1))


@torch.no_grad()
@pytest.mark.parametrize('name,make,positions,prefix', [
    ('cait', lambda size: Cait(**{**PLAIN, 'img_size': size}, init_values=0.1), 'pos_embed', 0),
    ('tnt', lambda size: tnt(img_size=size), 'patch_pos', 1),
    ('gemma4', lambda size: Gemma4VitClassifier(**GEMMA4), None, 0),
    ('deepseek', lambda size: DeepseekVitClassifier(**ROPE), None, 0),
])
def test_kept_rectangle_equals_the_cropped_image(name, make, positions, prefix):
    """Without the other tokens the model sees no more than a model of the crop, at the same positions."""
    model, image = build(name)
    crop = (3, 4)
    small = make((crop[0] * 8, crop[1] * 8)).eval()
    state = copy.copy(model.state_dict())
    if positions:
        state[positions] = crop_positions(state[positions], prefix, (6, 9), crop)
    small.load_state_dict(state)
    expected = small.forward_features(image[:, :, :crop[0] * 8, :crop[1] * 8])
    kept = model.forward_stages(model.keep_tokens(model.embed(image), crop_indices((6, 9), crop)))
    torch.testing.assert_close(kept, expected.reshape(kept.shape), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('name', NAFLEX_BRANCHES)
@pytest.mark.parametrize('mode', ['images', 'patch-drop', 'batch', 'batch-patch-drop'])
def test_dropped_tokens_equal_masked_attention(name, mode):
    """Attention that may not look at a token is attention without the token."""
    model, image = build(name)
    if 'patch-drop' in mode:
        model = NaFlexVit(**NAFLEX, **NAFLEX_BRANCHES[name], patch_drop_rate=0.25)
        # no other layer differs between the modes
        model.train()
    batch = (image, None, None) if 'batch' not in mode else naflex_batch(image)
    prefix = model.num_prefix_tokens
    torch.manual_seed(6)
    embedded = model.embed(*batch)
    num_patches = embedded.tokens.shape[1] - prefix
    keep = torch.stack([torch.randperm(num_patches, generator=torch.Generator().manual_seed(s))[:7] for s in (3, 4)])
    kept = model.forward_stages(model.keep_tokens(embedded, keep))

    visible = torch.zeros(2, prefix + num_patches, dtype=torch.bool)
    visible[:, :prefix] = True
    visible.scatter_(1, keep + prefix, True)
    mask = torch.zeros(visible.shape).masked_fill(~visible, float('-inf'))[:, None, None, :]
    if embedded.attn_mask is not None:
        mask = mask + embedded.attn_mask
    masked = model.forward_stages(embedded._replace(attn_mask=mask))
    if 'batch' in mode:
        assert torch.equal(kept['patch_valid'], embedded.patch_valid.gather(1, keep))
        kept, masked = kept['patches'], masked['patches']
    places = torch.cat([torch.arange(prefix).expand(2, -1), keep + prefix], dim=1)
    expected = masked.gather(1, places.unsqueeze(-1).expand(-1, -1, masked.shape[-1]))
    # tokens of padding attend to nothing or anything
    valid = torch.ones(2, prefix + 7, dtype=torch.bool)
    if 'batch' in mode:
        valid[:, prefix:] = embedded.patch_valid.gather(1, keep)
    torch.testing.assert_close(kept[valid], expected[valid], rtol=1e-5, atol=1e-5)


def naflex_batch(image):
    """Patches, coordinates and validity, the second sample is padded by eight patches."""
    patches, (height, width) = batch_patchify(image, (8, 8))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    patch_coord = torch.stack([rows.flatten(), columns.flatten()], dim=-1).repeat(2, 1, 1)
    patch_valid = torch.ones(2, height * width, dtype=torch.bool)
    patch_valid[1, -width:] = False
    patch_coord[1, -width:] = 0
    return patches, patch_coord, patch_valid


@torch.no_grad()
def test_naflex_batch_as_dict():
    model, image = build('naflex_axial')
    patches, patch_coord, patch_valid = naflex_batch(image)
    batch = dict(patches=patches, patch_coord=patch_coord, patch_valid=patch_valid, seq_len=patches.shape[1])
    features = model.forward_stages(model.embed(batch))
    torch.testing.assert_close(model.forward_head(**features), model(batch), rtol=0, atol=0)
    halves = model.forward_stages(model.embed_positions(model.embed_patches(batch)))
    assert torch.equal(halves['patches'], features['patches'])
    with pytest.raises(NotImplementedError, match='grid of its own'):
        model.features_to_map(features, (6, 9))
    # a padded sample has the features of the sample without the padding
    cropped = model.forward_features(image[1:, :, :40])
    torch.testing.assert_close(features['patches'][1:, :46], cropped, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gemma4_padding_is_kept_with_its_patch():
    model, image = build('gemma4')
    patches, patch_coord, patch_valid = naflex_batch(image)
    embedded = model.embed(patches, patch_coord, patch_valid)
    keep = torch.tensor([[0, 50, 10], [50, 3, 10]])
    kept = model.keep_tokens(embedded, keep)
    assert kept.padding_positions.tolist() == [[False] * 3, [True, False, False]]
    alone = model.keep_tokens(embedded, keep[1:, 1:].expand(2, -1))
    torch.testing.assert_close(
        model.forward_stages(kept)[1, 1:], model.forward_stages(alone)[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('block_mask', [False, True])
def test_qwen3_dropped_tokens_equal_masked_attention(block_mask):
    model, image = build('qwen3_encoder')
    embedded = model.embed(image)
    keep = torch.stack([torch.randperm(54, generator=torch.Generator().manual_seed(s))[:7] for s in (3, 4)])
    kept = model.forward_stages(model.keep_tokens(embedded, keep))
    mask = torch.ones(2, 1, 1, 54, dtype=torch.bool)
    if block_mask:
        mask = torch.zeros(2, 54, dtype=torch.bool).scatter(1, keep, True)[:, None, None]
    x = embedded.tokens
    for block in model.blocks:
        x = block(x, rope=embedded.rope, attn_mask=mask)
    masked = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    assert torch.allclose(kept, masked, rtol=1e-5, atol=1e-5) == block_mask


@pytest.mark.parametrize('name,reason', [
    ('beit', 'relative position bias'), ('beit_shared', 'relative position bias'),
    ('beit_absolute', 'relative position bias'), ('relpos', 'relative position bias'),
    ('sam', 'whole grid'), ('gemma4_soft', "encoder_pool=''"), ('qwen3_merge', "encoder_pool=''"),
    ('deepseek_align', "encoder_pool=''"), ('convit', 'gated positional attention'), ('xcit', 'whole grid'),
    ('volo', 'whole grid'), ('coat', 'whole grid'), ('crossvit', 'each branch'),
])
def test_refuses_to_drop_tokens(name, reason):
    model, image = build(name)
    with pytest.raises(NotImplementedError, match=reason):
        model.keep_tokens(model.embed(image), torch.zeros(2, 1, dtype=torch.int64))


@torch.no_grad()
def test_coat_with_several_maps_has_no_one_map():
    model = CoaT(**COAT, return_interm_layers=True, out_features=['x2_nocls', 'x4_nocls']).eval()
    with pytest.raises(NotImplementedError, match='CoaT with return_interm_layers'):
        model.features_to_map(model.forward_features(image_of((64, 96))), (16, 24))


@torch.no_grad()
def test_crossvit_refuses_by_name():
    model, image = build('crossvit')
    features = model.forward_stages(model.embed(image))
    assert [f.shape for f in features] == [(2, 17, 32), (2, 5, 48)]
    for refused in (
            lambda: model.embed_patches(image),
            lambda: model.embed_positions(image),
            lambda: model.map_tokens(features, torch.clone),
            lambda: model.patch_grid((48, 48)),
            lambda: model.features_to_map(features, (4, 4))):
        with pytest.raises(NotImplementedError, match='CrossVit has'):
            refused()


@torch.no_grad()
def test_crossvit_knows_where_something_stands():
    """Two places, a multiple of the patch sizes of both branches apart, are told apart by the positions alone."""
    model, _ = build('crossvit')
    content = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(2))

    def features_with_content_at(offset):
        image = torch.zeros(1, 3, 48, 48)
        image[0, :, offset:offset + 6, offset:offset + 6] = content
        return [f.sort(dim=1)[0] for f in model.forward_stages(model.embed(image))]

    def all_close():
        pairs = zip(features_with_content_at(9), features_with_content_at(33), strict=True)
        return [torch.allclose(first, second, rtol=1e-4, atol=1e-4) for first, second in pairs]

    assert all_close() == [False, False]
    model.pos_embed_0.zero_()
    model.pos_embed_1.zero_()
    assert all_close() == [True, True]


@torch.no_grad()
@pytest.mark.parametrize('name', ['cait', 'xcit', 'volo', 'convit', 'coat'])
def test_feature_map_of_a_pruned_model(name):
    model, image = build(name)
    model.prune_intermediate_layers([0])
    grid = model.patch_grid(image.shape[-2:])
    feature_map = model.features_to_map(model.forward_stages(model.embed(image)), grid)
    norm = name in ('cait', 'xcit', 'convit')
    expected, = model.forward_intermediates(image, indices=[0], intermediates_only=True, norm=norm)
    torch.testing.assert_close(feature_map, expected, rtol=1e-5, atol=1e-5)
