"""Branches of the hierarchical models: shrunken instances, one line per configuration."""
from cases import Case

SQUARE = {'img_size': [64, 64]}
WIDE = {'img_size': [64, 96]}
UNEVEN = {'img_size': [70, 53]}
CHECKPOINTING = {'img_size': [64, 64], 'checkpointing': True}

# class, and the keyword arguments that make it small
FAMILIES = {
    'swinv2': ('timm.models.swin_transformer_v2.SwinTransformerV2', dict(
        img_size=64, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4,
        pretrained_window_sizes=[0, 0])),
    'swinv2-cr': ('timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr', dict(
        img_size=[64, 64], patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4)),
    'hieradet': ('timm.models.hieradet_sam2.HieraDet', dict(
        embed_dim=16, stages=[1, 2, 1], num_heads=1, q_pool=2, window_spec=[8, 4, 4], global_att_blocks=[2],
        global_pos_size=[4, 4])),
    'hiera': ('timm.models.hiera.Hiera', dict(
        img_size=[64, 64], embed_dim=16, stages=[1, 1, 2], q_pool=2, mask_unit_size=[4, 4],
        mask_unit_attn=[True, True, False])),
    'pvt': ('timm.models.pvt_v2.PyramidVisionTransformerV2', dict(
        depths=[1, 2], embed_dims=[16, 32], num_heads=[1, 2], sr_ratios=[4, 2], mlp_ratios=[2., 2.])),
    'twins': ('timm.models.twins.Twins', dict(
        img_size=64, embed_dims=[16, 32, 48], num_heads=[1, 2, 3], mlp_ratios=[2, 2, 2], depths=[2, 1, 2],
        sr_ratios=[4, 2, 1])),
    'mvit': ('builders_hierarchical.multiscale_vit', {}),
    'levit': ('timm.models.levit.Levit', dict(
        img_size=64, embed_dim=[32, 48, 64], key_dim=16, depth=[1, 2, 1], num_heads=[2, 3, 4])),
    'levit-distilled': ('timm.models.levit.LevitDistilled', dict(
        img_size=64, embed_dim=[32, 48], key_dim=16, depth=[1, 2], num_heads=[2, 3])),
    'davit': ('timm.models.davit.DaVit', dict(
        depths=[1, 2], embed_dims=[16, 32], num_heads=[2, 4], window_size=4)),
    'gcvit': ('timm.models.gcvit.GlobalContextVit', dict(
        img_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_ratio=[16, 16])),
    'nest': ('timm.models.nest.Nest', dict(
        img_size=64, patch_size=4, num_levels=2, embed_dims=[16, 32], num_heads=[2, 4], depths=[2, 1])),
    'msra': ('timm.models.efficientvit_msra.EfficientVitMsra', dict(
        img_size=128, embed_dim=[32, 48], key_dim=[8, 8], depth=[1, 2], num_heads=[2, 2], window_size=[4, 4],
        down_ops=[['', 1], ['subsample', 2]])),
    'visformer': ('timm.models.visformer.Visformer', dict(
        img_size=64, init_channels=8, embed_dim=32, depth=[1, 2, 1], num_heads=4)),
    'pit': ('timm.models.pit.PoolingVisionTransformer', dict(
        img_size=64, patch_size=16, stride=8, base_dims=[8, 8, 8], depth=[1, 2, 1], heads=[2, 4, 8])),
    'focalnet': ('timm.models.focalnet.FocalNet', dict(
        embed_dim=16, depths=[1, 2], focal_levels=[2, 2], focal_windows=[3, 3])),
    'mambaout': ('timm.models.mambaout.MambaOut', dict(depths=[1, 2], dims=[16, 32])),
    'sequencer': ('timm.models.sequencer.Sequencer2d', dict(
        img_size=None, layers=[1, 2], patch_sizes=[7, 2], embed_dims=[16, 32], hidden_sizes=[4, 8],
        mlp_ratios=[2., 2.])),
    'mixer': ('timm.models.mlp_mixer.MlpMixer', dict(img_size=64, patch_size=16, num_blocks=2, embed_dim=32)),
    'convmixer': ('timm.models.convmixer.ConvMixer', dict(dim=16, depth=2, kernel_size=5, patch_size=7)),
    'efficientvim': ('timm.models.efficientvim.EfficientViM', dict(
        embed_dim=[16, 32, 48], depths=[1, 2, 1], state_dim=[9, 4, 2])),
    'efficientvim-distilled': ('timm.models.efficientvim.EfficientViMDistilled', dict(
        embed_dim=[16, 32], depths=[1, 2], state_dim=[9, 4])),
}


def case(family, name, probe_kwargs=SQUARE, **model_kwargs):
    model, small = FAMILIES[family]
    return Case(f'{family}-{name}', model, {**small, 'num_classes': 5, **model_kwargs}, probe_kwargs)


CASES = [
    case('swinv2', 'shifted', drop_path_rate=0.2),
    case('swinv2', 'non-square', WIDE, img_size=[64, 96]),
    case('swinv2', 'any-size', {'img_size': [72, 56]}, strict_img_size=False),
    case('swinv2', 'always-partition', always_partition=True, window_size=8),
    case('swinv2', 'pretrained-windows', pretrained_window_sizes=[8, 4]),
    case('swinv2', 'four-channels', in_chans=4),
    case('swinv2', 'checkpointing', CHECKPOINTING),
    case('swinv2', 'dropout', proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('swinv2-cr', 'shifted', drop_path_rate=0.2),
    case('swinv2-cr', 'non-square', WIDE, img_size=[64, 96]),
    case('swinv2-cr', 'any-size', {'img_size': [72, 56]}, strict_img_size=False),
    case('swinv2-cr', 'extra-norms', extra_norm_period=1, extra_norm_stage=True),
    case('swinv2-cr', 'sequential-attention', sequential_attn=True, init_values=0.1),
    case('swinv2-cr', 'checkpointing', CHECKPOINTING),
    case('swinv2-cr', 'dropout', drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('hieradet', 'overlapping-patches', drop_path_rate=0.2),
    case('hieradet', 'patches', patch_size=[4, 4]),
    case('hieradet', 'padded-patches', {'img_size': [61, 95]}, patch_size=[4, 4]),
    case('hieradet', 'non-square-one-channel', WIDE, in_chans=1),
    case('hieradet', 'layer-scale', init_values=0.1, global_att_blocks=[]),
    case('hieradet', 'checkpointing', CHECKPOINTING),
    case('hiera', 'absolute', drop_path_rate=0.2),
    case('hiera', 'absolute-window', abs_win_pos_embed=True, global_pos_size=[6, 6]),
    case('hiera', 'non-square', WIDE, img_size=[64, 96]),
    case('hiera', 'one-pooling', q_pool=1),
    case('hiera', 'no-expanded-projection', use_expand_proj=False, init_values=0.1),
    case('hiera', 'checkpointing', CHECKPOINTING),
    case('pvt', 'reduced', drop_path_rate=0.2, drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('pvt', 'linear', linear=True),
    case('pvt', 'uneven', UNEVEN),
    case('pvt', 'no-pool', global_pool='', num_classes=0),
    case('pvt', 'checkpointing', CHECKPOINTING),
    case('twins', 'pcpvt', drop_path_rate=0.2),
    case('twins', 'svt', wss=[7, 7, 7]),
    case('twins', 'non-square', WIDE, wss=[7, 7, 7]),
    case('twins', 'one-stage', embed_dims=[16], num_heads=[2], mlp_ratios=[2], depths=[2], sr_ratios=[4]),
    case('twins', 'dropout', drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('mvit', 'relative'),
    case('mvit', 'class-token', use_cls_token=True),
    case('mvit', 'class-token-absolute', use_cls_token=True, use_abs_pos=True),
    case('mvit', 'absolute-only', use_abs_pos=True, rel_pos_type='none'),
    case('mvit', 'unshared', mode='conv_unshared', num_heads=[1, 1], use_cls_token=True),
    case('mvit', 'expanding-mlp', expand_attn=False, residual_pooling=False, mode='max'),
    case('mvit', 'non-square', WIDE, rel_pos_type='none'),
    case('mvit', 'checkpointing', CHECKPOINTING, use_cls_token=True),
    case('levit', 'linear', drop_path_rate=0.2),
    case('levit', 'convolutional', use_conv=True),
    case('levit', 'stride-8', stem_type='s8'),
    case('levit', 'non-square', WIDE, img_size=[64, 96]),
    case('levit', 'checkpointing', CHECKPOINTING),
    case('levit-distilled', 'linear', drop_rate=0.1),
    case('levit-distilled', 'convolutional', use_conv=True),
    case('levit-distilled', 'checkpointing', CHECKPOINTING),
    case('davit', 'norm-after-pool', drop_path_rate=0.2),
    case('davit', 'norm-first', head_norm_first=True),
    case('davit', 'padded', UNEVEN, down_kernel_size=3),
    case('davit', 'second-channel-attention', channel_attn_v2=True, named_blocks=True, cpe_act=True),
    case('davit', 'spatial-only', attn_types=['spatial']),
    case('davit', 'checkpointing', CHECKPOINTING, head_norm_first=True),
    case('gcvit', 'global-windows', drop_path_rate=0.2),
    case('gcvit', 'layer-scale', layer_scale=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('gcvit', 'non-square', {'img_size': [64, 128]}, img_size=[64, 128]),
    case('gcvit', 'window-size', window_size=[4, 4], window_ratio=None),
    case('gcvit', 'checkpointing', CHECKPOINTING),
    case('nest', 'two-levels', drop_path_rate=0.2),
    case('nest', 'same-padding', pad_type='same'),
    case('nest', 'dropout', drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('nest', 'checkpointing', CHECKPOINTING),
    case('msra', 'windows', {'img_size': [128, 128]}),
    case('msra', 'uneven', {'img_size': [128, 177]}),
    case('msra', 'one-window', {'img_size': [64, 64]}, img_size=64),
    case('msra', 'checkpointing', {'img_size': [128, 128], 'checkpointing': True}),
    case('visformer', 'stem', drop_path_rate=0.2),
    case('visformer', 'no-stem', init_channels=None),
    case('visformer', 'patches', vit_stem=True, depth=[0, 2, 0]),
    case('visformer', 'no-positions', use_pos_embed=False),
    case('visformer', 'non-square', WIDE, img_size=[64, 96]),
    case('visformer', 'convolutional-first-stage', attn_stage='011', spatial_conv='100'),
    case('visformer', 'dropout', drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('visformer', 'checkpointing', CHECKPOINTING),
    case('pit', 'class-token', drop_path_rate=0.2),
    case('pit', 'distilled', distilled=True),
    case('pit', 'no-pool', global_pool='', num_classes=0),
    case('pit', 'non-square', WIDE, img_size=[64, 96]),
    case('pit', 'dropout', drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('focalnet', 'patches', drop_path_rate=0.2),
    case('focalnet', 'overlapping-patches', UNEVEN, use_overlap_down=True),
    case('focalnet', 'post-norm', use_post_norm=True, use_post_norm_in_modulation=True, layerscale_value=0.1),
    case('focalnet', 'hidden-head', head_hidden_size=24, normalize_modulator=True),
    case('focalnet', 'checkpointing', CHECKPOINTING),
    case('mambaout', 'norm-in-stem', drop_path_rate=0.2),
    case('mambaout', 'no-norm-in-stem', UNEVEN, stem_mid_norm=False, ls_init_value=0.1, head_fn='norm_mlp'),
    case('mambaout', 'first-norm-downsampling', downsample='conv_nf'),
    case('mambaout', 'checkpointing', CHECKPOINTING),
    case('sequencer', 'stem', {'img_size': [56, 84]}, drop_path_rate=0.2),
    case('sequencer', 'stem-norm', {'img_size': [56, 56]}, stem_norm=True),
    case('sequencer', 'sum', {'img_size': [56, 56]}, union='add', bidirectional=False),
    case('mixer', 'stem', drop_path_rate=0.2),
    case('mixer', 'stem-norm', stem_norm=True, drop_rate=0.1, proj_drop_rate=0.1),
    case('mixer', 'non-square', WIDE, img_size=[64, 96]),
    case('mixer', 'checkpointing', CHECKPOINTING),
    case('convmixer', 'uneven', UNEVEN),
    case('convmixer', 'checkpointing', {'img_size': [56, 56], 'checkpointing': True}),
    case('efficientvim', 'stages', {'img_size': [128, 128]}, drop_path_rate=0.2),
    case('efficientvim', 'uneven', {'img_size': [97, 130]}),
    case('efficientvim', 'no-pool', {'img_size': [128, 128]}, global_pool='', num_classes=0),
    case('efficientvim', 'checkpointing', {'img_size': [128, 128], 'checkpointing': True}),
    case('efficientvim-distilled', 'stages', {'img_size': [128, 96]}),
    case('efficientvim-distilled', 'checkpointing', {'img_size': [128, 128], 'checkpointing': True}),
]
