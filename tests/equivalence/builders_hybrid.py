"""Models configured by objects or classes, built from plain keyword arguments. Imported by both processes."""
from functools import partial

from timm.models import metaformer
from timm.models.byobnet import ByobNet, ByoBlockCfg, ByoModelCfg
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.mobilenetv5 import MobileNetV5, MobileNetV5Encoder
from timm.models._efficientnet_builder import decode_arch_def

BYOB_BLOCKS = {
    'conv': ByoBlockCfg(type='basic', d=1, c=16, s=2, gs=0, br=1.),
    'bottleneck': ByoBlockCfg(type='bottle', d=1, c=32, s=2, gs=0, br=0.25),
    'self_attn': ByoBlockCfg(type='self_attn', d=2, c=32, s=2, gs=0, br=0.5),
    'rep': ByoBlockCfg(type='rep', d=2, c=16, s=2),
    'one': ByoBlockCfg(type='one', d=2, c=16, s=2),
    'mobilevit': ByoBlockCfg(
        type='mobilevit', d=1, c=16, s=1, block_kwargs=dict(transformer_dim=16, transformer_depth=1, patch_size=2)),
}
MOBILENET_BLOCKS = [
    ['cn_r1_k3_s2_c16'],
    ['uir_r1_a3_k5_s2_e2_c24', 'uir_r1_a3_k0_s1_e2_c24'],
    ['uir_r1_a5_k5_s2_e2_c32', 'mqa_r1_k3_h2_s1_v2_d16_c32', 'uir_r1_a0_k0_s1_e2_c32'],
    ['uir_r1_a0_k3_s2_e2_c40', 'mqa_r1_k3_h2_s1_d16_c40', 'uir_r1_a0_k0_s1_e2_c40'],
]
TOKEN_MIXERS = {'attention': metaformer.Attention, 'convolution': metaformer.SepConv, 'pooling': metaformer.Pooling}


def without_head(model):
    """Let the features of a model that has no head, but a `forward_head` that fails, be its output."""
    model.forward_head = lambda features: features
    return model


def byobnet(blocks=('conv', 'self_attn'), stem_type='3x3', stem_pool='', stem_chs=8, img_size=None, num_classes=5,
            in_chans=3, drop_path_rate=0.1, **cfg):
    """A ByobNet with one stage per block."""
    cfg = ByoModelCfg(
        blocks=tuple(BYOB_BLOCKS[block] for block in blocks), stem_type=stem_type, stem_pool=stem_pool,
        stem_chs=stem_chs, self_attn_kwargs=dict(dim_head=16) if 'self_attn' in blocks else {}, **cfg)
    return ByobNet(
        cfg, img_size=img_size, num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)


def meta_former(token_mixers=('convolution', 'attention'), depths=(1, 2), dims=(16, 32), **kwargs):
    """A MetaFormer of two stages."""
    norm_layers = [
        metaformer.LayerNormNoBias if mixer == 'attention' else metaformer.LayerNorm2dNoBias for mixer in token_mixers]
    return metaformer.MetaFormer(
        depths=depths, dims=dims, token_mixers=[TOKEN_MIXERS[mixer] for mixer in token_mixers],
        norm_layers=norm_layers, **kwargs)


def fast_vit(positions=False, layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64), **kwargs):
    """A FastVit with attention in its last stage."""
    position_layer = partial(RepConditionalPosEnc, spatial_shape=(7, 7)) if positions else None
    model = FastVit(
        layers=layers, embed_dims=embed_dims, token_mixers=('repmixer', 'repmixer', 'repmixer', 'attention'),
        pos_embs=(None, None, None, position_layer), **kwargs)
    return without_head(model) if model.fork_feat else model


def mobile_net_v3(**kwargs):
    """A MobileNetV3 with attention in its last two stages."""
    return MobileNetV3(decode_arch_def(MOBILENET_BLOCKS), stem_size=8, num_features=48, **kwargs)


def mobile_net_v5(msfa_output_resolution=4, **kwargs):
    """A MobileNetV5 with attention in its last two stages."""
    return MobileNetV5(
        decode_arch_def(MOBILENET_BLOCKS), stem_size=8, num_features=48, fix_stem=True,
        msfa_output_resolution=msfa_output_resolution, **kwargs)


def mobile_net_v5_encoder(msfa_output_resolution=4, **kwargs):
    """A MobileNetV5Encoder with attention in its last two stages."""
    kwargs.pop('num_classes', None)
    return without_head(MobileNetV5Encoder(
        decode_arch_def(MOBILENET_BLOCKS), stem_size=8, fix_stem=True,
        msfa_output_resolution=msfa_output_resolution, **kwargs))
