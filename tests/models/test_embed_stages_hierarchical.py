"""What the protocol means on models with stages of falling resolution, and on token mixers."""
import pytest
import torch

from timm.models import has_embed_stages
from timm.models.convmixer import ConvMixer
from timm.models.davit import DaVit
from timm.models.efficientvim import EfficientViM, EfficientViMDistilled
from timm.models.efficientvit_msra import EfficientVitMsra
from timm.models.focalnet import FocalNet
from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.levit import Levit, LevitDistilled
from timm.models.mambaout import MambaOut
from timm.models.mlp_mixer import MlpMixer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.sequencer import Sequencer2d
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.twins import Twins
from timm.models.visformer import Visformer

WIDE = (64, 96)
SWIN = dict(img_size=WIDE, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4)
LEVIT = dict(img_size=WIDE, embed_dim=(32, 48), key_dim=16, depth=(1, 2), num_heads=(2, 3), stem_type='s8')
HIERADET = dict(
    embed_dim=16, stages=(1, 2), num_heads=1, q_pool=1, window_spec=(8, 4), global_att_blocks=(2,),
    global_pos_size=(4, 4))
VISFORMER = dict(img_size=WIDE, embed_dim=32, depth=(1, 1, 1), num_heads=4)
VIM = dict(embed_dim=(16, 32), depths=(1, 2), state_dim=(9, 4))
PIT = dict(img_size=WIDE, patch_size=16, stride=8, base_dims=(8, 8), depth=(1, 2), heads=(2, 4))


def hiera(**kwargs):
    return Hiera(**{**dict(
        img_size=WIDE, embed_dim=16, stages=(1, 1, 2), q_pool=2, mask_unit_size=(4, 4),
        mask_unit_attn=(True, True, False), num_classes=0), **kwargs})


def multiscale_vit(**cfg):
    return MultiScaleVit(
        MultiScaleVitCfg(
            depths=(1, 2), embed_dim=16, num_heads=1, stride_q=((1, 1), (2, 2)), stride_kv_adaptive=(2, 2), **cfg),
        img_size=(64, 64), num_classes=0)


# model, size of its images
MODELS = {
    'swinv2': (lambda: SwinTransformerV2(**SWIN, num_classes=0), WIDE),
    'swinv2_cr': (lambda: SwinTransformerV2Cr(**SWIN, num_classes=0), WIDE),
    'hieradet': (lambda: HieraDet(**HIERADET, num_classes=0), WIDE),
    'hieradet_patches': (lambda: HieraDet(**HIERADET, patch_size=(4, 4), num_classes=0), WIDE),
    'hiera': (hiera, WIDE),
    'hiera_one_pooling': (lambda: hiera(q_pool=1), WIDE),
    'pvt': (lambda: PyramidVisionTransformerV2(
        depths=(1, 2), embed_dims=(16, 32), num_heads=(1, 2), sr_ratios=(4, 2), mlp_ratios=(2, 2), num_classes=0),
        WIDE),
    'twins': (lambda: Twins(
        img_size=WIDE, embed_dims=(16, 32), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(2, 2), sr_ratios=(4, 2),
        wss=(7, 7), num_classes=0), WIDE),
    'mvit': (multiscale_vit, (64, 64)),
    'mvit_class_token': (lambda: multiscale_vit(use_cls_token=True, use_abs_pos=True), (64, 64)),
    'mvit_wide': (lambda: multiscale_vit(rel_pos_type='none'), (60, 100)),
    'levit': (lambda: Levit(**LEVIT, num_classes=0), WIDE),
    'levit_conv': (lambda: LevitDistilled(**LEVIT, use_conv=True, num_classes=0), WIDE),
    'davit': (lambda: DaVit(
        depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, head_norm_first=True, num_classes=0),
        (62, 95)),
    'gcvit': (lambda: GlobalContextVit(
        img_size=(64, 128), embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_ratio=(16, 16), num_classes=0),
        (64, 128)),
    'nest': (lambda: Nest(
        img_size=64, patch_size=4, num_levels=2, embed_dims=(16, 32), num_heads=(2, 4), depths=(1, 1),
        num_classes=0), (64, 64)),
    'msra': (lambda: EfficientVitMsra(
        img_size=128, embed_dim=(32, 48), key_dim=(8, 8), depth=(1, 2), num_heads=(2, 2), window_size=(4, 4),
        down_ops=(('', 1), ('subsample', 2)), num_classes=0), (128, 177)),
    'visformer': (lambda: Visformer(**VISFORMER, init_channels=8, num_classes=0), WIDE),
    'visformer_no_stem': (lambda: Visformer(**VISFORMER, init_channels=None, num_classes=0), WIDE),
    'pit': (lambda: PoolingVisionTransformer(**PIT, num_classes=0), WIDE),
    'pit_distilled': (lambda: PoolingVisionTransformer(**PIT, distilled=True, num_classes=0), WIDE),
    'focalnet': (lambda: FocalNet(
        embed_dim=16, depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3), use_overlap_down=True,
        num_classes=0), (66, 95)),
    'mambaout': (lambda: MambaOut(depths=(1, 2), dims=(16, 32), num_classes=0), (61, 93)),
    'sequencer': (lambda: Sequencer2d(
        img_size=None, layers=(1, 2), patch_sizes=(7, 2), embed_dims=(16, 32), hidden_sizes=(4, 8), mlp_ratios=(2, 2),
        num_classes=0), (56, 84)),
    'mixer': (lambda: MlpMixer(img_size=WIDE, patch_size=16, num_blocks=2, embed_dim=32, num_classes=0), WIDE),
    'convmixer': (lambda: ConvMixer(dim=16, depth=2, kernel_size=5, patch_size=7, num_classes=0), (58, 90)),
    'efficientvim': (lambda: EfficientViM(**VIM, num_classes=0), (160, 225)),
    'efficientvim_distilled': (lambda: EfficientViMDistilled(**VIM, num_classes=0), (128, 160)),
}
WITHOUT_MAP = ['pit', 'pit_distilled']
WITH_MAP = [name for name in MODELS if name not in WITHOUT_MAP]


def build(name):
    """A model with random weights in eval mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def image_for(name, batch_size=2, seed=1):
    return torch.randn(batch_size, 3, *MODELS[name][1], generator=torch.Generator().manual_seed(seed))


def all_tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in all_tensors(v)] if isinstance(value, (list, tuple)) else []


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(all_tensors(first), all_tensors(second), strict=True))


def grid_of(model, tokens):
    return tuple(tokens.shape[2:] if model.grid_format == 'NCHW' else tokens.shape[1:3])


def run(model, patches, fn):
    """Features of the patches that `fn` makes of the tokens (B, N, C)."""
    return model.forward_stages(model.embed_positions(model.map_tokens(patches, fn)))


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@torch.no_grad()
def test_grid_and_width_are_those_of_the_patches(name):
    model, image = build(name), image_for(name)
    assert has_embed_stages(model)
    seen = []
    patches = model.embed_patches(image)
    mapped = model.map_tokens(patches, lambda tokens: seen.append(tokens.shape) or tokens.clone())
    height, width = model.patch_grid(image.shape[-2:])
    assert seen == [(2, height * width, model.patch_dim)]
    assert same(mapped, patches) and type(mapped) is type(patches)
    tokens = all_tensors(patches)[0]
    if tokens.ndim == 4:
        assert grid_of(model, tokens) == (height, width)


@torch.no_grad()
@pytest.mark.parametrize('size', [(61, 90), (63, 97), (66, 71)])
@pytest.mark.parametrize('name', [
    'hieradet', 'hieradet_patches', 'pvt', 'mvit', 'levit_conv', 'davit', 'gcvit', 'msra', 'focalnet', 'mambaout',
    'sequencer', 'convmixer', 'efficientvim', 'pit'])
def test_grid_of_any_image(name, size):
    """The stems take any size, wherever the stages would fail."""
    model = build(name)
    tokens = model.map_tokens(model.embed_patches(torch.zeros(1, 3, *size)), torch.clone)
    grid = model.patch_grid(size)
    assert grid == (tuple(tokens.feat_size) if isinstance(tokens, tuple) else grid_of(model, tokens))


@torch.no_grad()
def test_tokens_are_row_major(name):
    """A change in the image shows most in the token that has its place in the grid, or in a neighbour."""
    model, image = build(name), image_for(name, 1)
    height, width = model.patch_grid(image.shape[-2:])
    row, column = 1, width - 2
    stride = model.feature_info[0]['reduction']
    changed = image.clone()
    changed[:, :, row * stride:(row + 1) * stride, column * stride:(column + 1) * stride] += 4.
    seen = []
    for x in (image, changed):
        model.map_tokens(model.embed_patches(x), lambda tokens: seen.append(tokens) or tokens)
    distance = (seen[1] - seen[0])[0].norm(dim=-1).view(height, width)
    assert distance[row, column] > 0.2 * distance.max()
    rows, columns = torch.where(distance > 0.5 * distance.max())
    # an overlapping stem looks a patch beyond; the norm within it makes the size of a change nearly the same there
    assert (rows - row).abs().max() <= 1 and (columns - column).abs().max() <= 1


@torch.no_grad()
def test_one_patch_changes_the_output(name):
    model = build(name)
    patches = model.embed_patches(image_for(name, 1))

    def change(tokens):
        tokens = tokens.clone()
        tokens[:, 3] += 1.
        return tokens
    assert not same(run(model, patches, change), run(model, patches, torch.clone))


def features_with_one_token(model, name, place):
    """Features of zero tokens but one, sorted: the same for two places if the model cannot tell these apart."""
    image = image_for(name, 1).double()
    grid = model.patch_grid(image.shape[-2:])
    token = torch.randn(model.patch_dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def put(tokens):
        tokens = torch.zeros_like(tokens)
        tokens[:, place[0] * grid[1] + place[1]] = token
        return tokens

    features = run(model, model.embed_patches(image), put)
    return features if name in WITHOUT_MAP else model.features_to_map(features, grid).flatten(2).sort(dim=2)[0]


def features_at_two_places(model, name):
    """One token at places as far from each other as windows and strides repeat."""
    shift = model.patch_grid(MODELS[name][1])[0] // 4 * 2
    return [features_with_one_token(model, name, place) for place in [(1, 1), (1 + shift, 1 + shift)]]


@torch.no_grad()
def test_where_a_token_stands_matters(name):
    """By positions, relative ones too, or by the weights of a mixer.

    Without these: PVTv2, FocalNet, MambaOut, ConvMixer, EfficientViM, by the zero padding of convolutions; so are the
    position convolutions of Twins and DaViT. Sequencer reads places one after the other.
    """
    first, second = features_at_two_places(build(name).double(), name)
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


@torch.no_grad()
@pytest.mark.parametrize('name', ['hieradet', 'hiera'])
def test_without_positions_places_are_alike(name):
    """The control of the test above: nothing else tells the places apart."""
    model = build(name).double()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith('pos_embed'):
            parameter.zero_()
    torch.testing.assert_close(*features_at_two_places(model, name))


@torch.no_grad()
def test_nothing_but_tokens_crosses(name):
    """With every patch replaced, the features do not depend on the image."""
    model = build(name)
    features = [
        run(model, model.embed_patches(image_for(name, seed=seed)), torch.zeros_like) for seed in (1, 2)]
    assert same(*features)


@torch.no_grad()
def test_tokens_are_not_changed_in_place(name):
    """Neither before nor in the stages: what goes in may be an expanded mask token."""
    model = build(name)
    token = torch.randn(1, 1, model.patch_dim)
    before = token.clone()
    expanded = model.map_tokens(model.embed_patches(image_for(name)), lambda tokens: token.expand_as(tokens))
    embedded = model.embed_positions(expanded)
    copies = [t.clone() for t in all_tensors(embedded)]
    model.forward_stages(embedded)
    assert torch.equal(token, before) and same(all_tensors(embedded), copies)


def reference_map(model, image, last=None):
    """The map that upstream's `forward_intermediates` gives of the last stage, or of stage `last` without norm."""
    normed = last is None and not isinstance(model, (Hiera, HieraDet, EfficientViM))
    if last is None:
        last = len(model.stage_ends if isinstance(model, (Hiera, HieraDet)) else model.feature_info) - 1
    feature_map = model.forward_intermediates(image, indices=[last], norm=normed, intermediates_only=True)[0]
    if isinstance(model, EfficientViM) and last == len(model.feature_info) - 1:
        feature_map = model.norm[-1](feature_map)  # its intermediates take the norm of the hidden state
    return feature_map


@torch.no_grad()
@pytest.mark.parametrize('name', WITH_MAP)
def test_feature_map_is_the_last_intermediate(name):
    model, image = build(name), image_for(name)
    grid = model.patch_grid(image.shape[-2:])
    feature_map = model.features_to_map(model.forward_features(image), grid)
    expected = reference_map(model, image)
    assert feature_map.shape == expected.shape and torch.equal(feature_map, expected)


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in WITH_MAP if name != 'mixer' and name != 'convmixer'])
def test_pruned_model(name):
    """What is left after pruning still composes, and its map is that of the stage that is last now."""
    model, image = build(name), image_for(name)
    grid = model.patch_grid(image.shape[-2:])
    expected = reference_map(model, image, last=0)
    model.prune_intermediate_layers([0], prune_norm=True)
    features = model.forward_stages(model.embed(image))
    assert same(features, model.forward_features(image))
    assert torch.equal(model.features_to_map(features, grid), expected)


@torch.no_grad()
@pytest.mark.parametrize('name', [
    'hiera', 'twins', 'mvit', 'mvit_class_token', 'levit', 'mixer', 'efficientvim'])
def test_feature_map_refuses_another_grid(name):
    model, image = build(name), image_for(name)
    height, width = model.patch_grid(image.shape[-2:])
    with pytest.raises(ValueError, match='do not make a'):
        model.features_to_map(model.forward_features(image), (height + 2, width))


@torch.no_grad()
@pytest.mark.parametrize('name', WITHOUT_MAP)
def test_class_tokens_make_no_map(name):
    model, image = build(name), image_for(name)
    features = model.forward_features(image)
    assert features.shape == (2, 2 if name == 'pit_distilled' else 1, model.num_features)
    with pytest.raises(NotImplementedError, match='PoolingVisionTransformer has no feature map.*class tokens'):
        model.features_to_map(features, model.patch_grid(image.shape[-2:]))


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in MODELS if not name.startswith('hiera_') and name != 'hiera'])
def test_dropping_tokens_is_refused(name):
    model = build(name)
    with pytest.raises(NotImplementedError, match=f'{type(model).__name__} cannot drop tokens.*map_tokens'):
        model.keep_tokens(model.embed(image_for(name)), torch.zeros(2, 1, dtype=torch.int64))


@torch.no_grad()
def test_foreign_patches_are_refused(name):
    model = build(name)
    with pytest.raises(ValueError, match=f'{type(model).__name__} has patch tokens of width {model.patch_dim}'):
        model.map_tokens(torch.zeros(1, 5, 5, 5), torch.clone)


@torch.no_grad()
@pytest.mark.parametrize('name', ['swinv2', 'swinv2_cr', 'msra'])
def test_resized_model(name):
    model = build(name)
    size = (128, 192)
    model.set_input_size(img_size=size)
    image = torch.randn(1, 3, *size)
    features = model.forward_stages(model.embed(image))
    assert same(features, model.forward_features(image))
    assert torch.equal(model.features_to_map(features, model.patch_grid(size)), reference_map(model, image))


class TestHieraMask:
    """Hiera drops whole mask units: by a mask that is given, or by its own in training."""

    units = 4 * 6  # 16 x 24 tokens in units of 4 x 4

    def mask(self, batch_size=2, kept=10):
        noise = torch.rand(batch_size, self.units, generator=torch.Generator().manual_seed(5))
        return noise.argsort(dim=1) < kept

    @torch.no_grad()
    def test_given_mask(self):
        """`forward_intermediates`, which is upstream's, with the same mask gives the same features."""
        model, image, mask = build('hiera'), image_for('hiera'), self.mask()
        embedded = model.embed(image, mask=mask)
        assert embedded.tokens.shape == (2, 10 * 16, 16) and embedded.mask is mask
        features, maps = model.forward_intermediates(image, mask=mask, output_fmt='NHWC')
        assert torch.equal(model.forward_stages(embedded), features)
        assert torch.equal(model.forward_features(image, mask=mask), features)
        returned, intermediates = model.forward_features(image, mask=mask, return_intermediates=True)
        assert torch.equal(returned, features) and len(intermediates) == len(maps) == 3 and same(intermediates, maps)

    @torch.no_grad()
    def test_masked_units_are_not_seen(self):
        model, image, mask = build('hiera'), image_for('hiera'), self.mask()
        pixels = mask.view(2, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
        elsewhere = torch.where(pixels, image, image_for('hiera', seed=3))
        assert not torch.equal(image, elsewhere)
        assert torch.equal(model.forward_features(image, mask=mask), model.forward_features(elsewhere, mask=mask))

    @torch.no_grad()
    def test_kept_units_are_those_of_the_mask(self):
        """As upstream drops them, which blanks the masked pixels first: the stem overlaps."""
        model, image, mask = build('hiera'), image_for('hiera'), self.mask()
        assert model.keep_grid(image.shape[-2:]) == (4, 6)
        keep = mask.nonzero()[:, 1].reshape(2, 10)
        pixels = mask.view(2, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
        kept = model.keep_tokens(model.embed(image * pixels), keep)
        assert torch.equal(kept.tokens, model.embed(image, mask=mask).tokens) and kept.mask is None
        shuffled = model.keep_tokens(model.embed(image * pixels), keep.flip(1))
        assert not torch.equal(shuffled.tokens, kept.tokens)

    @torch.no_grad()
    def test_keeping_all_units_is_the_identity(self):
        model = build('hiera')
        embedded = model.embed(image_for('hiera'))
        kept = model.keep_tokens(embedded, torch.arange(self.units).expand(2, -1))
        assert torch.equal(kept.tokens, embedded.tokens)
        assert torch.equal(model.forward_stages(kept), model.forward_stages(embedded))

    @torch.no_grad()
    def test_own_mask_in_training(self):
        torch.manual_seed(0)
        model = hiera(patch_drop_rate=0.5).train()
        image = image_for('hiera')
        torch.manual_seed(7)
        embedded = model.embed(image)
        torch.manual_seed(7)
        mask = model.get_random_mask(image, 0.5)
        assert torch.equal(embedded.mask, mask) and embedded.tokens.shape[1] == 12 * 16
        model.eval()
        assert torch.equal(embedded.tokens, model.embed(image, mask=mask).tokens)
        assert model.embed(image).mask is None

    @torch.no_grad()
    def test_masked_features_make_no_map(self):
        model, image = build('hiera'), image_for('hiera')
        with pytest.raises(ValueError, match='10 tokens of a 16 x 24 grid do not make a map'):
            model.features_to_map(model.forward_features(image, mask=self.mask()), (16, 24))


def test_efficientvim_map_is_the_final_map_alone():
    model, image = build('efficientvim'), image_for('efficientvim')
    features = model.forward_features(image)
    assert [f.shape[1:] for f in features] == [(16, 9), (32, 4), (32, 5 * 8)]
    assert model.patch_grid((160, 225)) == (10, 15)
    assert model.features_to_map(features, (10, 15)).shape == (2, 32, 5, 8)
