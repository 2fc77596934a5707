"""Branches of the hybrid models: shrunken instances, one line per configuration."""
from cases import Case

SQUARE = {'img_size': [64, 64]}
WIDE = {'img_size': [64, 96]}
UNEVEN = {'img_size': [70, 53]}
CHECKPOINTING = {'img_size': [64, 64], 'checkpointing': True}

# class or builder, and the keyword arguments that make it small
FAMILIES = {
    'byobnet': ('builders_hybrid.byobnet', dict(self_attn_layer='bottleneck', fixed_input_size=True, img_size=64)),
    'byobnet-conv': ('builders_hybrid.byobnet', dict(blocks=['conv', 'bottleneck'])),
    'cpubone': ('timm.models.cpubone.CPUBone', dict(
        width_list=[8, 16, 24, 32, 48], depth_list=[1, 1, 1, 1, 1], head_widths=[32, 40])),
    'csatv2': ('timm.models.csatv2.CSATv2', dict(
        dims=[32, 40, 48, 64], depths=[1, 1, 2, 2], transformer_depths=[0, 0, 1, 1])),
    'edgenext': ('timm.models.edgenext.EdgeNeXt', dict(
        dims=[8, 16, 32, 64], depths=[1, 2, 2, 2], heads=[2, 2, 2, 2])),
    'efficientformer': ('timm.models.efficientformer.EfficientFormer', dict(
        depths=[1, 1, 1, 2], embed_dims=[8, 16, 24, 32], num_vit=1)),
    'efficientformerv2': ('timm.models.efficientformer_v2.EfficientFormerV2', dict(
        img_size=[64, 64], depths=[1, 1, 2, 2], embed_dims=[8, 16, 24, 32], num_vit=1)),
    'efficientvit': ('timm.models.efficientvit_mit.EfficientVit', dict(
        widths=[8, 8, 16, 16, 32], depths=[1, 1, 1, 1, 1], head_dim=8, head_widths=[32, 40])),
    'efficientvit-large': ('timm.models.efficientvit_mit.EfficientVitLarge', dict(
        widths=[8, 8, 16, 16, 32], depths=[1, 1, 1, 1, 1], head_dim=8, head_widths=[32, 40])),
    'fastvit': ('builders_hybrid.fast_vit', {}),
    'iformer': ('timm.models.iformer.IFormer', dict(
        dims=[16, 16, 32, 32], depths=[1, 1, 4, 4], attn_groups=[0, 0, 1, 1])),
    'lowformer': ('timm.models.lowformer.LowFormer', dict(
        width_list=[8, 16, 24, 32, 48], depth_list=[1, 1, 1, 1, 1], head_widths=[32, 40])),
    'maxxvit': ('test_maxvit', dict(img_size=[64, 64])),
    'coatnet': ('test_coatnet', dict(img_size=[64, 64])),
    'metaformer': ('builders_hybrid.meta_former', {}),
    'mobilenetv3': ('builders_hybrid.mobile_net_v3', {}),
    'mobilenetv5': ('builders_hybrid.mobile_net_v5', {}),
    'mobilenetv5-encoder': ('builders_hybrid.mobile_net_v5_encoder', {}),
    'nextvit': ('timm.models.nextvit.NextViT', dict(in_chans=3, depths=[1, 1, 5, 1], stem_chs=[16, 8, 16])),
    'shvit': ('timm.models.shvit.SHViT', dict(
        embed_dim=[32, 48, 64], partial_dim=[8, 16, 16], qk_dim=[8, 8, 8], depth=[1, 1, 1], types=['i', 's', 's'])),
    'swiftformer': ('timm.models.swiftformer.SwiftFormer', dict(layers=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32])),
    'tinyvit': ('timm.models.tiny_vit.TinyVit', dict(
        embed_dims=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_sizes=[7, 7, 3, 7])),
}


def case(family, name, probe_kwargs=SQUARE, **model_kwargs):
    model, small = FAMILIES[family]
    return Case(f'{family}-{name}', model, {**small, 'num_classes': 5, **model_kwargs}, probe_kwargs)


CASES = [
    case('byobnet', 'bottleneck-attention'),
    case('byobnet', 'lambda', self_attn_layer='lambda'),
    case('byobnet', 'halo', {'img_size': [128, 128]}, self_attn_layer='halo', stem_type='quad', img_size=128),
    case('byobnet', 'non-square-one-channel', WIDE, img_size=[64, 96], in_chans=1),
    case('byobnet', 'checkpointing', CHECKPOINTING),
    case('byobnet-conv', 'mobilevit', blocks=['conv', 'mobilevit'], num_features=40),
    case('byobnet-conv', 'quad-stem', UNEVEN, stem_type='quad2', stem_pool='avg2'),
    case('byobnet-conv', 'tiered-stem', UNEVEN, stem_type='tiered', stem_pool='max2'),
    case('byobnet-conv', 'deep-stem', UNEVEN, stem_type='deep', stem_pool='maxpool'),
    case('byobnet-conv', 'resnet-stem', UNEVEN, stem_type='7x7', stem_pool='avgpool', attn_layer='se'),
    case('byobnet-conv', 'final-convolution', num_features=40, head_type='mlp', head_hidden_size=24),
    case('byobnet-conv', 'attention-pool', head_type='attn_abs', head_hidden_size=64, img_size=64),
    case('byobnet-conv', 'rep', blocks=['rep', 'rep'], stem_type='rep', stem_chs=16),
    case('byobnet-conv', 'one', blocks=['one', 'one'], stem_type='one', stem_chs=16),
    case('cpubone', 'unfused', drop_path_rate=0.2),
    case('cpubone', 'fused', fused_conv=True, fused_downsample=True, small_kernels=True, attn_upsample='nearest'),
    case('cpubone', 'uneven-one-channel', UNEVEN, in_chans=1, local_mbconv_norm='all', expand_groups=2),
    case('cpubone', 'checkpointing', CHECKPOINTING),
    case('csatv2', 'frequencies', drop_path_rate=0.2, transformer_drop_path=True),
    case('csatv2', 'non-square-layer-scale', {'img_size': [64, 128]}, ls_init_value=0.1),
    case('csatv2', 'checkpointing', CHECKPOINTING),
    case('edgenext', 'patches', drop_path_rate=0.2),
    case('edgenext', 'overlapping-patches', UNEVEN, stem_type='overlap', downsample_block=True, conv_bias=False),
    case('edgenext', 'norm-first', UNEVEN, head_norm_first=True, in_chans=4),
    case('edgenext', 'checkpointing', CHECKPOINTING, head_norm_first=True),
    case('efficientformer', 'tokens', {'img_size': [224, 224]}, drop_path_rate=0.2, proj_drop_rate=0.1),
    case('efficientformer', 'no-pool', {'img_size': [224, 224]}, global_pool='', num_classes=0, num_vit=2),
    case('efficientformer', 'checkpointing', {'img_size': [224, 224], 'checkpointing': True}),
    case('efficientformerv2', 'distilled', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('efficientformerv2', 'non-square', {'img_size': [64, 128]}, img_size=[64, 128], distillation=False),
    case('efficientformerv2', 'checkpointing', CHECKPOINTING),
    case('efficientvit', 'stages'),
    case('efficientvit', 'uneven-one-channel', UNEVEN, in_chans=1),
    case('efficientvit', 'checkpointing', CHECKPOINTING),
    case('efficientvit-large', 'stages'),
    case('efficientvit-large', 'uneven-one-channel', UNEVEN, in_chans=1),
    case('efficientvit-large', 'checkpointing', CHECKPOINTING),
    case('fastvit', 'attention', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('fastvit', 'positions', UNEVEN, positions=True, se_downsamples=[False, True, True, True]),
    case('fastvit', 'inference-one-channel', in_chans=1, inference_mode=True),
    case('fastvit', 'list-of-features', fork_feat=True),
    case('fastvit', 'checkpointing', CHECKPOINTING),
    case('iformer', 'attention', drop_path_rate=0.2),
    case('iformer', 'uneven-distilled', UNEVEN, distillation=True, layer_scale_init_value=0.1),
    case('iformer', 'checkpointing', CHECKPOINTING),
    case('lowformer', 'fused', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('lowformer', 'unfused', UNEVEN, fused_conv=False, expand_groups=2, in_chans=1),
    case('lowformer', 'no-attention', attn=False, attn_mlp=False, depth_list=[0, 1, 0, 1, 1]),
    case('lowformer', 'checkpointing', CHECKPOINTING),
    case('maxxvit', 'windows', drop_path_rate=0.2),
    case('maxxvit', 'non-square', WIDE, img_size=[64, 96], in_chans=1),
    case('maxxvit', 'convnext-blocks', conv_block_type='convnext', embed_dim=[32, 64, 128, 128]),
    case('maxxvit', 'checkpointing', CHECKPOINTING),
    case('coatnet', 'attention', drop_path_rate=0.2),
    case('coatnet', 'non-square-same-padding', WIDE, img_size=[64, 96], conv_padding='same'),
    case('metaformer', 'attention', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('metaformer', 'pooling', UNEVEN, token_mixers=['pooling', 'pooling'], layer_scale_init_values=0.1, in_chans=1),
    case('metaformer', 'no-pool', UNEVEN, global_pool='', num_classes=0, downsample_norm=None),
    case('metaformer', 'checkpointing', CHECKPOINTING),
    case('mobilenetv3', 'attention', drop_path_rate=0.2, layer_scale_init_value=0.1),
    case('mobilenetv3', 'same-padding', UNEVEN, pad_type='same', in_chans=1),
    case('mobilenetv3', 'head-norm', head_norm=True, drop_rate=0.1),
    case('mobilenetv3', 'checkpointing', CHECKPOINTING),
    case('mobilenetv5', 'fused-scales', drop_path_rate=0.2),
    case('mobilenetv5', 'fused-stem', msfa_indices=[0, -1], pad_type='same'),
    case('mobilenetv5', 'one-scale', use_msfa=False, in_chans=1),
    case('mobilenetv5', 'one-scale-checkpointing', CHECKPOINTING, use_msfa=False),
    case('mobilenetv5', 'pooled-scales', WIDE, msfa_output_resolution=2),
    case('mobilenetv5', 'checkpointing', CHECKPOINTING),
    case('mobilenetv5-encoder', 'fused-scales', drop_path_rate=0.2),
    case('mobilenetv5-encoder', 'fused-stem', WIDE, msfa_indices=[0, -1], in_chans=4),
    case('mobilenetv5-encoder', 'checkpointing', CHECKPOINTING),
    case('nextvit', 'attention', drop_path_rate=0.2),
    case('nextvit', 'uneven-one-channel', UNEVEN, in_chans=1, proj_drop_rate=0.1, attn_drop_rate=0.1),
    case('nextvit', 'checkpointing', CHECKPOINTING),
    case('shvit', 'attention', drop_rate=0.1),
    case('shvit', 'uneven-one-channel', UNEVEN, in_chans=1),
    case('shvit', 'checkpointing', CHECKPOINTING),
    case('swiftformer', 'attention', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('swiftformer', 'uneven-one-channel', UNEVEN, in_chans=1, global_pool='', num_classes=0),
    case('swiftformer', 'checkpointing', CHECKPOINTING),
    case('tinyvit', 'windows', drop_path_rate=0.2, proj_drop_rate=0.1),
    case('tinyvit', 'padded-windows', UNEVEN, in_chans=1),
    case('tinyvit', 'checkpointing', CHECKPOINTING),
]
