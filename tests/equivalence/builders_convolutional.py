"""Small convolutional models that take blocks or configurations as objects. Imported by both processes."""
from timm.models import dla, senet
from timm.models.cspnet import CspModelCfg, CspNet, CspStagesCfg, CspStemCfg
from timm.models.hrnet import HighResolutionNet
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.selecsls import SelecSls, SelecSlsBlock
from timm.models.vovnet import VovNet


def csp_net(out_chs=(8, 12, 16), kernel_size=3, stride=2, pool='', stage_type='csp', **kwargs):
    block_ratio = 1. if stage_type == 'dark' else 0.5  # other stages run their blocks on half of the channels
    stages = CspStagesCfg(depth=(1, 2), out_chs=(16, 32), block_ratio=block_ratio, stage_type=stage_type)
    return CspNet(CspModelCfg(CspStemCfg(out_chs, stride, kernel_size, pool=pool), stages), **kwargs)


def norm_free_net(in_chans=3, num_classes=5, drop_path_rate=0.1, **cfg):
    cfg = NfCfg(depths=(1, 1, 1, 1), channels=(16, 16, 32, 32), stem_chs=16, **cfg)
    return NormFreeNet(cfg, in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path_rate)


def reg_net(in_chans=3, num_classes=5, **cfg):
    cfg = RegNetCfg(depth=6, w0=16, wa=24., wm=2., group_size=8, stem_width=8, **cfg)
    return RegNet(cfg, in_chans=in_chans, num_classes=num_classes, drop_path_rate=0.1)


def deep_layer_aggregation(block='DlaBasic', **kwargs):
    return dla.DLA(
        levels=(1, 1, 1, 2, 2, 1), channels=(8, 8, 16, 16, 32, 32), block=getattr(dla, block), base_width=8, **kwargs)


def squeeze_excitation_net(block='SEResNetBlock', inplanes=16, **kwargs):
    return senet.SENet(getattr(senet, block), layers=(1, 1, 1, 1), groups=1, reduction=4, inplanes=inplanes, **kwargs)


def selective_short_long(**kwargs):
    cfg = dict(
        block=SelecSlsBlock, num_features=40, feature_info=[
            dict(num_chs=32, reduction=2, module='stem.2'), dict(num_chs=32, reduction=4, module='features.1'),
            dict(num_chs=32, reduction=8, module='features.2'), dict(num_chs=40, reduction=16, module='head.1'),
            dict(num_chs=40, reduction=32, module='head.2')],
        features=[(32, 0, 16, 16, True, 2), (16, 16, 16, 32, False, 1), (32, 0, 16, 32, True, 2)],
        head=[(32, 32, 3, 2), (32, 40, 3, 1), (40, 40, 3, 2)])
    return SelecSls(cfg, **kwargs)


def high_resolution_net(pruned=False, **kwargs):
    """With 1 to 4 branches, or without the modules that join them for the classifier."""
    cfg = dict(stem_width=16)
    for i in range(4):
        cfg[f'stage{i + 1}'] = dict(
            num_modules=1, num_branches=i + 1, block_type='BASIC' if i else 'BOTTLENECK', num_blocks=(1,) * (i + 1),
            num_channels=tuple(8 * 2 ** j for j in range(i + 1)), fuse_method='SUM')
    model = HighResolutionNet(cfg, **kwargs)
    if pruned:
        model.prune_intermediate_layers([3])
        model.forward_head = lambda features: features
    return model


def one_shot_aggregation_net(**kwargs):
    cfg = dict(
        stem_chs=[8, 8, 16], stage_conv_chs=[8, 16, 16, 16], stage_out_chs=[16, 32, 32, 32], layer_per_block=2,
        block_per_stage=[1, 2, 1, 1], residual=True, depthwise=False, attn='ese')
    return VovNet(cfg, **kwargs)
