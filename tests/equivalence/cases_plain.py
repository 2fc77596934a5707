"""Branches of the plain transformers: shrunken instances, one line per configuration."""
from cases import Case

SQUARE = {'img_size': [32, 32]}
WIDE = {'img_size': [32, 64]}
LARGER = {'img_size': [48, 64]}
UNEVEN = {'img_size': [37, 43]}
CHECKPOINTING = {'img_size': [32, 32], 'checkpointing': True}
MASKED = {'img_size': [32, 32], 'call': {'attn_mask': [16, 16]}}

PLAIN = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5)
NAFLEX = dict(
    patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, pos_embed_grid_size=[4, 4], global_pool='avg')
GEMMA4 = dict(
    img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=3, head_dim=16, intermediate_size=64,
    position_embedding_size=16, drop_path_rate=0.1)
QWEN3 = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, pos_embed_grid_size=4, drop_path_rate=0.1)
DEEPSEEK = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, drop_path_rate=0.1)
DROPOUT = dict(proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2)

# class, and the keyword arguments that make it small
FAMILIES = {
    'beit': ('timm.models.beit.Beit', dict(PLAIN, init_values=0.1)),
    'relpos': ('timm.models.vision_transformer_relpos.VisionTransformerRelPos', dict(PLAIN, rel_pos_dim=16)),
    'sam': ('timm.models.vision_transformer_sam.VisionTransformerSAM', dict(
        PLAIN, window_size=3, global_attn_indexes=[1], neck_chans=16)),
    'naflex': ('timm.models.naflexvit.NaFlexVit', NAFLEX),
    'gemma4-encoder': ('builders_plain.headless', dict(
        GEMMA4, class_path='timm.models.gemma4_vit.Gemma4VitEncoder')),
    'gemma4-classifier': ('timm.models.gemma4_vit.Gemma4VitClassifier', dict(GEMMA4, num_classes=5)),
    'qwen3-encoder': ('builders_plain.headless', dict(
        QWEN3, class_path='timm.models.qwen3_vit.Qwen3VitEncoder')),
    'qwen3-classifier': ('timm.models.qwen3_vit.Qwen3VitClassifier', dict(QWEN3, num_classes=5)),
    'deepseek-encoder': ('builders_plain.headless', dict(
        DEEPSEEK, out_features=24, class_path='timm.models.deepseek_vit.DeepseekVitEncoder')),
    'deepseek-classifier': ('timm.models.deepseek_vit.DeepseekVitClassifier', dict(DEEPSEEK, num_classes=5)),
    'cait': ('timm.models.cait.Cait', dict(PLAIN, init_values=0.1)),
    'convit': ('timm.models.convit.ConVit', dict(PLAIN, local_up_to_layer=2)),
    'convit-hybrid': ('builders_plain.convit_hybrid', dict(
        img_size=32, patch_size=1, embed_dim=48, depth=3, num_heads=3, num_classes=5, local_up_to_layer=2)),
    'xcit': ('timm.models.xcit.Xcit', dict(PLAIN, num_heads=4, embed_dim=64)),
    'volo': ('timm.models.volo.VOLO', dict(
        img_size=32, layers=[1, 1, 1], embed_dims=[16, 32, 32], num_heads=[2, 4, 4], stem_hidden_dim=8, patch_size=4,
        downsamples=[True, False, False], outlook_attention=[True, False, False], num_classes=5)),
    'crossvit': ('timm.models.crossvit.CrossVit', dict(
        img_size=48, img_scale=[1.0, 2 / 3], patch_size=[12, 16], embed_dim=[32, 48], num_heads=[2, 3],
        depth=[[1, 2, 0], [1, 1, 1]], num_classes=5)),
    'tnt': ('timm.models.tnt.TNT', dict(
        img_size=32, patch_size=8, embed_dim=48, inner_dim=16, depth=3, num_heads_inner=2, num_heads_outer=3,
        num_classes=5)),
    'coat': ('timm.models.coat.CoaT', dict(
        img_size=64, patch_size=4, embed_dims=[16, 24, 32, 32], serial_depths=[1, 1, 2, 1], num_classes=5)),
    'coat-parallel': ('timm.models.coat.CoaT', dict(
        img_size=64, patch_size=4, embed_dims=[16, 32, 32, 32], serial_depths=[1, 1, 1, 1], parallel_depth=2,
        num_classes=5)),
}


def case(family, branch, probe_kwargs=SQUARE, **model_kwargs):
    model, small = FAMILIES[family]
    return Case(f'{family}-{branch}', model, {**small, **model_kwargs}, probe_kwargs)


def adapted(family, branch, probe_kwargs=SQUARE, **kwargs):
    """A model that was changed after it was built."""
    model, small = FAMILIES[family]
    return Case(f'{family}-{branch}', 'builders_plain.headless', {'class_path': model, **small, **kwargs}, probe_kwargs)


def size(height, width=None, **probe_kwargs):
    return {'img_size': [height, width or height], **probe_kwargs}


CASES = [
    case('beit', 'relative', use_abs_pos_emb=False, use_rel_pos_bias=True),
    case('beit', 'shared', use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=None),
    case('beit', 'both-and-shared', use_rel_pos_bias=True, use_shared_rel_pos_bias=True, **DROPOUT),
    case('beit', 'absolute', pos_drop_rate=0.1, global_pool='token'),
    case('beit', 'no-positions', use_abs_pos_emb=False),
    case('beit', 'non-square-one-channel', WIDE, img_size=[32, 64], in_chans=1, use_rel_pos_bias=True),
    case('beit', 'swiglu', swiglu_mlp=True, scale_mlp=True, use_rel_pos_bias=True),
    case('beit', 'checkpointing', CHECKPOINTING, use_shared_rel_pos_bias=True),
    case('relpos', 'mlp', init_values=0.1, **DROPOUT),
    case('relpos', 'swin-class-token', rel_pos_type='mlp-swin', class_token=True, global_pool='token'),
    case('relpos', 'bias-shared', rel_pos_type='bias', shared_rel_pos=True, class_token=True),
    case('relpos', 'bias-non-square', WIDE, img_size=[32, 64], rel_pos_type='bias', fc_norm=True, qk_norm=True),
    case('relpos', 'checkpointing-four-channels', CHECKPOINTING, shared_rel_pos=True, in_chans=4),
    case('sam', 'absolute', pos_drop_rate=0.1, **DROPOUT),
    case('sam', 'relative', use_rel_pos=True, pre_norm=True),
    case('sam', 'relative-non-square', WIDE, img_size=[32, 64], use_rel_pos=True, in_chans=1),
    case('sam', 'any-size', LARGER),
    case('sam', 'rotary', use_abs_pos=False, use_rope=True, ref_feat_shape=[[4, 4], [3, 3]]),
    case('sam', 'no-neck', neck_chans=0, init_values=0.1),
    case('sam', 'checkpointing', CHECKPOINTING, use_rel_pos=True),
    case('naflex', 'learned'),
    case('naflex', 'learned-other-size', LARGER, reg_tokens=2, class_token=True),
    case('naflex', 'learned-keeps-aspect', WIDE, pos_embed_ar_preserving=True, pre_norm=True),
    case('naflex', 'factorized', LARGER, pos_embed='factorized', class_token=True, global_pool='token'),
    case('naflex', 'convolution-padded', UNEVEN, embed_proj_type='conv', dynamic_img_pad=True),
    case(
        'naflex', 'linear-padded-norms', UNEVEN, dynamic_img_pad=True, input_norm_layer='layernorm',
        embed_norm_layer='layernorm'),
    case('naflex', 'patch-drop', patch_drop_rate=0.5, reg_tokens=1, pos_drop_rate=0.1),
    case('naflex', 'axial', pos_embed='none', rope_type='axial', class_token=True),
    case('naflex', 'axial-patch-drop', rope_type='axial', patch_drop_rate=0.5, reg_tokens=1),
    case('naflex', 'mixed', WIDE, rope_type='mixed', pos_embed='none'),
    case('naflex', 'mixed-patch-drop', rope_type='mixed', patch_drop_rate=0.5, class_token=True),
    case(
        'naflex', 'dinov3-augmented', rope_type='dinov3', rope_shift_coords=0.1, rope_jitter_coords=1.2,
        rope_rotate_half=True),
    case('naflex', 'multi-axis', rope_type='mrope', rope_mrope_section=[1, 4, 3]),
    case('naflex', 'map-pool-four-channels', global_pool='map', in_chans=4),
    case('naflex', 'attention-mask', MASKED),
    case('naflex', 'checkpointing', CHECKPOINTING),
    case('naflex', 'axial-checkpointing', CHECKPOINTING, rope_type='axial'),
    case('naflex', 'mixed-checkpointing', CHECKPOINTING, rope_type='mixed', rope_shift_coords=0.1),
    case('gemma4-encoder', 'soft', size(48), use_clipped_linears=True),
    case('gemma4-encoder', 'soft-standardized', size(48, 72), standardize=True),
    case('gemma4-encoder', 'average', size(40), global_pool='avg', num_kv_heads=1),
    case('gemma4-encoder', 'rectangular-patch', size(32, 48), patch_size=[8, 12], global_pool='none', in_chans=1),
    case('gemma4-encoder', 'checkpointing', size(48, checkpointing=True), **DROPOUT),
    case('gemma4-classifier', 'tokens', size(40, 32)),
    case('gemma4-classifier', 'soft', size(48, 24), encoder_pool='soft', standardize=True),
    case('gemma4-classifier', 'checkpointing', size(48, checkpointing=True), encoder_pool='soft'),
    case('qwen3-encoder', 'merge', out_features=24),
    case('qwen3-encoder', 'other-size', LARGER, global_pool='avg', **DROPOUT),
    case('qwen3-encoder', 'checkpointing', CHECKPOINTING, global_pool='', in_chans=1),
    case('qwen3-classifier', 'tokens', size(40, 32)),
    case('qwen3-classifier', 'merge', LARGER, encoder_pool='merge', out_features=24),
    case('qwen3-classifier', 'checkpointing', CHECKPOINTING),
    case('deepseek-encoder', 'align', LARGER),
    case('deepseek-encoder', 'padded', UNEVEN, dynamic_img_pad=True, global_pool='avg', **DROPOUT),
    case('deepseek-encoder', 'checkpointing', CHECKPOINTING, global_pool='', in_chans=4),
    case('deepseek-classifier', 'tokens', size(40, 32)),
    case('deepseek-classifier', 'align-padded', UNEVEN, encoder_pool='align', out_features=24, dynamic_img_pad=True),
    case('deepseek-classifier', 'checkpointing', CHECKPOINTING),
    case('cait', 'token', pos_drop_rate=0.1, **DROPOUT),
    case('cait', 'average-non-square', WIDE, img_size=[32, 64], global_pool='avg', in_chans=1),
    case('cait', 'checkpointing', CHECKPOINTING),
    case('convit', 'local', pos_drop_rate=0.1, **DROPOUT),
    case('convit', 'all-local', local_up_to_layer=3, global_pool='avg'),
    case('convit', 'no-positions', use_pos_embed=False, local_up_to_layer=0, in_chans=4),
    case('convit-hybrid', 'stem'),
    case('xcit', 'eighth', LARGER, pos_drop_rate=0.1, **DROPOUT),
    case('xcit', 'sixteenth', size(64, 96), patch_size=16, tokens_norm=True),
    case('xcit', 'uneven-no-positions', UNEVEN, use_pos_embed=False, global_pool='avg', in_chans=1),
    case('xcit', 'checkpointing', CHECKPOINTING, cls_attn_layers=1),
    case('volo', 'token', pos_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2),
    case('volo', 'no-class-attention', post_layers=None, global_pool='avg', use_aux_head=False),
    case('volo', 'non-square', WIDE, img_size=[32, 64], in_chans=4),
    case('volo', 'checkpointing', CHECKPOINTING),
    case('crossvit', 'two-sizes', size(48), **DROPOUT),
    case('crossvit', 'convolutions', size(48), multi_conv=True, global_pool='avg', in_chans=1, pos_drop_rate=0.1),
    case('crossvit', 'crop', size(48, 96), img_size=[48, 96], crop_scale=True),
    # its attention dropout acts in place on what the backward pass needs, upstream too
    case('tnt', 'token', pos_drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.2),
    case('tnt', 'legacy', legacy=True, global_pool='avg'),
    case('tnt', 'non-square', WIDE, img_size=[32, 64], in_chans=1),
    case('tnt', 'checkpointing', CHECKPOINTING),
    case('coat', 'serial', size(64), **DROPOUT),
    case('coat', 'average-non-square', size(64, 96), img_size=[64, 96], global_pool='avg', in_chans=4),
    adapted('coat', 'maps', size(64), return_interm_layers=True, out_features=['x1_nocls', 'x4_nocls']),
    case('coat-parallel', 'average', size(64), global_pool='avg', drop_path_rate=0.1),
    adapted('coat-parallel', 'maps', size(64), return_interm_layers=True, out_features=['x2_nocls', 'x4_nocls']),
    adapted('beit', 'resized', WIDE, input_size=[32, 64], use_rel_pos_bias=True),
    adapted('relpos', 'resized', LARGER, input_size=[48, 64], class_token=True),
    adapted('beit', 'pruned', prune=[1]),
    adapted('relpos', 'pruned', prune=[0]),
    adapted('sam', 'pruned', prune=[1]),
    adapted('naflex', 'pruned', prune=[1]),
    adapted('gemma4-classifier', 'pruned', size(48), prune=[0]),
    adapted('qwen3-classifier', 'pruned', prune=[0], encoder_pool='merge', out_features=24),
    adapted('deepseek-classifier', 'pruned', prune=[0], encoder_pool='align', out_features=24),
    adapted('cait', 'pruned', prune=[1]),
    adapted('convit', 'pruned', prune=[1]),
    adapted('xcit', 'pruned', prune=[1]),
    adapted('volo', 'pruned', prune=[0]),
    adapted('volo', 'pruned-later', prune=[1]),
    adapted('crossvit', 'pruned', size(48), prune=[0]),
    adapted('tnt', 'pruned', prune=[1]),
    adapted('coat', 'pruned', size(64), prune=[0]),
    adapted('coat', 'pruned-later', size(64), prune=[2]),
]
