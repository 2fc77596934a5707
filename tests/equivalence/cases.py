"""Configurations that no registered model has, or that only a giant one has: one line per branch of a class.

Here those of VisionTransformer, Eva and SwinTransformer, the other families have a `cases_<group>.py` each.
"""
import importlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple


class Case(NamedTuple):
    name: str
    model: str
    model_kwargs: Dict[str, Any] = {}
    probe_kwargs: Dict[str, Any] = {}


def all_cases() -> List[Case]:
    """The cases of all families."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob('cases*.py'))
    return [case for module in modules for case in importlib.import_module(module).CASES]


TINY_VIT = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5)
TINY_EVA = dict(TINY_VIT, init_values=0.1)
TINY_SWIN = dict(
    img_size=64, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, num_classes=5,
    drop_path_rate=0.2)

VIT = 'timm.models.vision_transformer.VisionTransformer'
DEIT = 'timm.models.deit.VisionTransformerDistilled'
EVA = 'timm.models.eva.Eva'
SWIN = 'timm.models.swin_transformer.SwinTransformer'


def vit(name, probe_kwargs=None, **model_kwargs):
    return Case(f'vit-{name}', VIT, {**TINY_VIT, **model_kwargs}, {'img_size': [32, 32], **(probe_kwargs or {})})


def deit(name, probe_kwargs=None, **model_kwargs):
    return Case(f'deit-{name}', DEIT, {**TINY_VIT, **model_kwargs}, {'img_size': [32, 32], **(probe_kwargs or {})})


def eva(name, probe_kwargs=None, **model_kwargs):
    return Case(f'eva-{name}', EVA, {**TINY_EVA, **model_kwargs}, {'img_size': [32, 32], **(probe_kwargs or {})})


def swin(name, probe_kwargs=None, **model_kwargs):
    return Case(f'swin-{name}', SWIN, {**TINY_SWIN, **model_kwargs}, {'img_size': [64, 64], **(probe_kwargs or {})})


WIDE = {'img_size': [32, 64]}
ROPE = dict(use_rot_pos_emb=True)
MIXED = dict(use_rot_pos_emb=True, rope_type='mixed')
MROPE = dict(use_rot_pos_emb=True, rope_type='mrope', attn_type='rope', rope_mrope_section=[1, 4, 3])
DINO = dict(
    use_rot_pos_emb=True, rope_type='dinov3', rope_rotate_half=True, use_abs_pos_emb=False, num_reg_tokens=4,
    attn_type='rope')
DROPOUT = dict(pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2)

CASES = [
    vit('class-token'),
    vit('no-class-token', class_token=False, global_pool='avg'),
    vit('registers', reg_tokens=4),
    vit('registers-no-embed-class', reg_tokens=4, no_embed_class=True),
    vit('no-positions', pos_embed='none'),
    vit('pre-norm', pre_norm=True),
    vit('no-final-norm', final_norm=False),
    vit('map-pool', global_pool='map', class_token=False),
    vit('non-square', WIDE, img_size=[32, 64]),
    vit('rectangular-patch', img_size=[32, 32], patch_size=[4, 8]),
    vit('one-channel', in_chans=1),
    vit('four-channels', in_chans=4),
    vit('dynamic-size', WIDE, dynamic_img_size=True, reg_tokens=2),
    vit(
        'dynamic-size-no-positions', WIDE,
        dynamic_img_size=True, pos_embed='none', class_token=False, global_pool='avg'),
    vit('dynamic-pad', {'img_size': [37, 43]}, dynamic_img_size=True, dynamic_img_pad=True),
    vit('dynamic-no-embed-class', WIDE, dynamic_img_size=True, no_embed_class=True),
    vit('patch-drop', patch_drop_rate=0.5, reg_tokens=1),
    vit('dropout', **DROPOUT),
    vit('layer-scale-qk-norm', init_values=0.1, qk_norm=True),
    vit('attention-mask', {'call': {'attn_mask': [17, 17]}}),
    vit('causal', {'call': {'is_causal': True}}),
    vit('checkpointing', {'checkpointing': True}),
    deit('distilled'),
    deit('distilled-dynamic', WIDE, dynamic_img_size=True),
    deit('checkpointing', {'checkpointing': True}),
    eva('absolute'),
    eva('no-positions', use_abs_pos_emb=False, num_reg_tokens=2),
    eva('rope', **ROPE),
    eva('rope-no-class-token', class_token=False, **ROPE),
    eva('rope-registers-no-embed-class', num_reg_tokens=3, no_embed_class=True, **ROPE),
    eva('rope-dynamic', WIDE, dynamic_img_size=True, **ROPE),
    eva('rope-patch-drop', patch_drop_rate=0.5, **ROPE),
    eva('rope-attention-mask', {'call': {'attn_mask': [17, 17]}}, **ROPE),
    eva('rope-causal', {'call': {'is_causal': True}}, **ROPE),
    eva('rope-checkpointing', {'checkpointing': True}, **ROPE),
    eva('mixed-rope', **MIXED),
    eva('mixed-rope-dynamic', WIDE, dynamic_img_size=True, **MIXED),
    eva('mixed-rope-patch-drop', patch_drop_rate=0.5, num_reg_tokens=1, **MIXED),
    eva('mixed-rope-attention-mask', {'call': {'attn_mask': [17, 17]}}, **MIXED),
    eva('mixed-rope-checkpointing', {'checkpointing': True}, **MIXED),
    eva('multi-axis-rope', **MROPE),
    eva('multi-axis-rope-dynamic', WIDE, dynamic_img_size=True, **MROPE),
    eva('dinov3', **DINO),
    eva('dinov3-augmented', rope_shift_coords=0.1, rope_jitter_coords=1.2, rope_rescale_coords=1.3, **DINO),
    eva('dinov3-patch-drop', patch_drop_rate=0.5, **DINO),
    eva('pre-and-post-norm', use_pre_transformer_norm=True, use_post_norm=True),
    eva('grouped-query', num_kv_heads=1, attn_type='rope', qkv_fused=False, **ROPE),
    eva('dropout', **DROPOUT),
    eva('non-square-one-channel', WIDE, img_size=[32, 64], in_chans=1, **ROPE),
    swin('shifted'),
    swin('non-square', {'img_size': [64, 96]}, img_size=[64, 96]),
    swin('any-size', {'img_size': [72, 56]}, strict_img_size=False),
    swin('always-partition', always_partition=True, window_size=8),
    swin('four-channels', in_chans=4),
    swin('checkpointing', {'checkpointing': True}),
    swin('dropout', proj_drop_rate=0.1, attn_drop_rate=0.1),
]
