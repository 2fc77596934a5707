"""Branches of the convolutional models: shrunken instances, one line per configuration."""
from cases import Case

SQUARE = {'img_size': [64, 64]}
WIDE = {'img_size': [64, 96]}
UNEVEN = {'img_size': [70, 53]}
CHECKPOINTING = {'img_size': [64, 64], 'checkpointing': True}
UNPADDED = {'img_size': [96, 107]}

GHOST_BLOCKS = [[[3, 16, 16, 0, 1]], [[3, 32, 24, 0.25, 2]], [[5, 48, 40, 0, 2], [5, 48, 40, 0.25, 1]]]
XCEPTION_BLOCKS = [
    dict(in_chs=64, out_chs=32, stride=2), dict(in_chs=32, out_chs=32, stride=1),
    dict(in_chs=32, out_chs=[32, 48, 48], no_skip=True, stride=2)]

# registered model, class or builder, and the keyword arguments that make it small
FAMILIES = {
    'convnext': ('test_convnext', {}),
    'cspnet': ('builders_convolutional.csp_net', {}),
    'cspnext': ('timm.models.cspnext.CspNext', dict(depths=[1, 1, 1, 1], channels=[16, 32, 48, 64])),
    'densenet': ('timm.models.densenet.DenseNet', dict(growth_rate=8, block_config=[1, 2])),
    'dla': ('builders_convolutional.deep_layer_aggregation', {}),
    'dpn': ('timm.models.dpn.DPN', dict(
        k_sec=[1, 1, 2, 1], inc_sec=[8, 8, 8, 8], k_r=16, groups=4, num_init_features=16, small=True)),
    'efficientnet': ('test_efficientnet', {}),
    'fasternet': ('timm.models.fasternet.FasterNet', dict(embed_dim=16, depths=[1, 1, 1, 1], feature_dim=32)),
    'ghostnet': ('timm.models.ghostnet.GhostNet', dict(cfgs=GHOST_BLOCKS)),
    'hgnet': ('hgnetv2_b0', {}),
    'hrnet': ('builders_convolutional.high_resolution_net', {}),
    'inceptionnext': ('timm.models.inception_next.MetaNeXt', dict(depths=[1, 1, 1, 1], dims=[16, 32, 48, 64])),
    'inceptionresnetv2': ('inception_resnet_v2', {}),
    'inceptionv3': ('inception_v3', {}),
    'inceptionv4': ('inception_v4', {}),
    'lcnetv2': ('timm.models.lcnetv2.LCNetV2', dict(scale=0.25, depths=[1, 1, 2, 1], head_hidden_size=32)),
    'nasnet': ('timm.models.nasnet.NASNetALarge', dict(stem_size=12, num_features=192)),
    'nfnet': ('builders_convolutional.norm_free_net', {}),
    'pnasnet': ('pnasnet5large', {}),
    'rdnet': ('timm.models.rdnet.RDNet', dict(
        growth_rates=[8, 8, 8], num_blocks_list=[1, 1, 1], block_type=['Block', 'BlockESE', 'BlockESE'],
        is_downsample_block=[None, True, False], num_init_features=16)),
    'regnet': ('builders_convolutional.reg_net', {}),
    'repghost': ('timm.models.repghost.RepGhostNet', dict(cfgs=GHOST_BLOCKS)),
    'repvit': ('timm.models.repvit.RepVit', dict(embed_dim=[16, 24, 32], depth=[1, 1, 1])),
    'resnet': ('test_resnet', {}),
    'resnetv2': ('timm.models.resnetv2.ResNetV2', dict(layers=[1] * 4, channels=[128] * 4, stem_chs=64)),
    'rexnet': ('timm.models.rexnet.RexNet', dict(initial_chs=8, final_chs=40, depth_mult=0.5)),
    'selecsls': ('builders_convolutional.selective_short_long', {}),
    'senet': ('builders_convolutional.squeeze_excitation_net', {}),
    'starnet': ('timm.models.starnet.StarNet', dict(base_dim=8, depths=[1, 1, 1, 1])),
    'tresnet': ('timm.models.tresnet.TResNet', dict(layers=[1, 1, 1, 1], width_factor=0.25)),
    'vgg': ('timm.models.vgg.VGG', dict(cfg=[8, 'M', 16, 'M', 16, 16, 'M'], mlp_ratio=0.01)),
    'vovnet': ('builders_convolutional.one_shot_aggregation_net', {}),
    'xception': ('legacy_xception', {}),
    'xceptionaligned': ('timm.models.xception_aligned.XceptionAligned', dict(block_cfg=XCEPTION_BLOCKS)),
}


def case(family, name, probe_kwargs=SQUARE, **model_kwargs):
    model, small = FAMILIES[family]
    return Case(f'{family}-{name}', model, {**small, 'num_classes': 5, **model_kwargs}, probe_kwargs)


CASES = [
    case('convnext', 'patches', drop_path_rate=0.2),
    case('convnext', 'overlapping-patches', UNEVEN, stem_type='overlap'),
    case('convnext', 'tiered-stem', WIDE, stem_type='overlap_tiered', use_grn=True),
    case('convnext', 'norm-first', head_norm_first=True, in_chans=1),
    case('cspnet', 'stem'),
    case('cspnet', 'pooled-stem', UNEVEN, stride=4, pool='max', stage_type='cs3'),
    case('cspnet', 'full-resolution', out_chs=16, stride=1, stage_type='dark'),
    case('cspnext', 'stem', UNEVEN),
    case('cspnext', 'checkpointing', CHECKPOINTING),
    case('densenet', 'stem', UNEVEN, proj_drop_rate=0.1),
    case('densenet', 'deep-tiered-stem', stem_type='deep_tiered'),
    case('dla', 'basic', WIDE),
    case('dla', 'residual', block='DlaBottle2neck', shortcut_root=True),
    case('dpn', 'small-stem', UNEVEN),
    case('dpn', 'stem', small=False, b=True),
    case('dpn', 'checkpointing', CHECKPOINTING),
    case('efficientnet', 'stem', UNEVEN, drop_path_rate=0.2),
    case('efficientnet', 'same-padding', UNEVEN, pad_type='same'),
    case('efficientnet', 'non-square-one-channel', WIDE, in_chans=1),
    case('efficientnet', 'checkpointing', CHECKPOINTING),
    case('fasternet', 'patches', drop_path_rate=0.2),
    case('ghostnet', 'first', UNEVEN),
    case('ghostnet', 'second', version='v2'),
    case('ghostnet', 'checkpointing', CHECKPOINTING),
    case('hgnet', 'second-stem', UNEVEN),
    case('hrnet', 'classifier'),
    case('hrnet', 'branches', WIDE, pruned=True),
    case('inceptionnext', 'patches', drop_path_rate=0.2),
    case('inceptionresnetv2', 'unpadded', UNPADDED),
    case('inceptionv3', 'unpadded', UNPADDED),
    case('inceptionv4', 'unpadded', UNPADDED),
    case('lcnetv2', 'stem', UNEVEN),
    case('lcnetv2', 'checkpointing', CHECKPOINTING),
    case('nasnet', 'same-padding', UNPADDED),
    case('nfnet', 'stem', UNEVEN),
    case('nfnet', 'deep-stem', stem_type='deep_quad', same_padding=True, extra_conv=True, skipinit=True),
    case('nfnet', 'pooled-stem', UNEVEN, stem_type='7x7_pool', num_features=40),
    case('nfnet', 'checkpointing', CHECKPOINTING, reg=True),
    case('pnasnet', 'unpadded', UNPADDED),
    case('rdnet', 'patches', drop_path_rate=0.2),
    case('rdnet', 'checkpointing', CHECKPOINTING),
    case('regnet', 'stem', UNEVEN, se_ratio=0.25),
    case('regnet', 'convolution-as-stem', preact=True, num_features=40),
    case('repghost', 'stem', UNEVEN),
    case('repghost', 'checkpointing', CHECKPOINTING),
    case('repvit', 'distilled', UNEVEN),
    case('repvit', 'checkpointing', CHECKPOINTING, distillation=False),
    case('resnet', 'pooled-stem', UNEVEN, drop_path_rate=0.2),
    case('resnet', 'deep-stem', stem_type='deep', stem_width=8, avg_down=True),
    case('resnet', 'deep-tiered-stem', WIDE, stem_type='deep_tiered', stem_width=8, replace_stem_pool=True),
    case('resnet', 'four-channels', in_chans=4),
    case('resnet', 'checkpointing', CHECKPOINTING),
    case('resnetv2', 'stem', UNEVEN),
    case('resnetv2', 'same-padding', UNEVEN, stem_type='same', drop_path_rate=0.2),
    case('resnetv2', 'deep-stem', stem_type='deep', preact=False),
    case('rexnet', 'stem', UNEVEN, drop_path_rate=0.2),
    case('rexnet', 'checkpointing', CHECKPOINTING),
    case('selecsls', 'stem', {'img_size': [128, 128]}),
    case('senet', 'rounded-up-pool', UNEVEN),
    case('senet', 'three-convolutions', {'img_size': [61, 95]}, block='SEBottleneck', input_3x3=True, inplanes=16),
    case('starnet', 'stem', UNEVEN, drop_path_rate=0.2),
    case('starnet', 'checkpointing', CHECKPOINTING),
    case('tresnet', 'space-to-depth', WIDE),
    case('tresnet', 'checkpointing', CHECKPOINTING, v2=True),
    case('vgg', 'first-pool', UNEVEN),
    case('vovnet', 'stem', UNEVEN, drop_path_rate=0.2),
    case('xception', 'unpadded', UNPADDED),
    case('xceptionaligned', 'stem', UNEVEN),
    case('xceptionaligned', 'preact', preact=True),
    case('xceptionaligned', 'checkpointing', CHECKPOINTING),
]
