"""Models of a few thousand parameters, one per branch that masked image modeling meets."""
import torch

from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.tnt import TNT
from timm.models.vision_transformer import VisionTransformer

PLAIN = dict(img_size=(64, 96), patch_size=16, embed_dim=24, depth=2, num_heads=2)
WINDOWED = dict(img_size=(64, 96), patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4)

BUILDERS = {
    'vit': lambda **kw: VisionTransformer(**{**PLAIN, **kw}),
    'vit_average_pool': lambda **kw: VisionTransformer(**{**PLAIN, **kw}, class_token=False, global_pool='avg'),
    'vit_attention_pool': lambda **kw: VisionTransformer(**{**PLAIN, **kw}, class_token=False, global_pool='map'),
    'vit_registers': lambda **kw: VisionTransformer(**{**PLAIN, **kw}, reg_tokens=4, no_embed_class=True),
    'vit_dynamic': lambda **kw: VisionTransformer(**{**PLAIN, **kw}, dynamic_img_size=True),
    'vit_pre_norm': lambda **kw: VisionTransformer(**{**PLAIN, **kw}, pre_norm=True),
    'vit_rectangular_patch': lambda **kw: VisionTransformer(**{**PLAIN, 'patch_size': (16, 8), **kw}),
    'vit_distilled': lambda **kw: VisionTransformerDistilled(**{**PLAIN, **kw}),
    'eva': lambda **kw: Eva(**{**PLAIN, **kw}, use_rot_pos_emb=True),
    'eva_average_pool': lambda **kw: Eva(**{**PLAIN, **kw}, global_pool='avg', use_fc_norm=True),
    'eva_mixed_rope': lambda **kw: Eva(
        **{**PLAIN, **kw}, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_type='mixed', num_reg_tokens=2),
    'swin': lambda **kw: SwinTransformer(**{**WINDOWED, **kw}),
}
NAFLEX = dict(patch_size=16, embed_dim=24, depth=2, num_heads=2, global_pool='avg', pos_embed_grid_size=(4, 6))

# one model per class and branch that drops tokens
TOKEN_DROPPING_BUILDERS = {
    **{name: builder for name, builder in BUILDERS.items() if name != 'swin'},
    'naflex': lambda **kw: NaFlexVit(NaFlexVitCfg(**NAFLEX, class_token=True), **kw),
    'naflex_axial_rope': lambda **kw: NaFlexVit(
        NaFlexVitCfg(**NAFLEX, pos_embed='none', rope_type='axial', reg_tokens=2), **kw),
    'naflex_mixed_rope': lambda **kw: NaFlexVit(
        NaFlexVitCfg(**NAFLEX, pos_embed='none', rope_type='mixed', attn_type='rope'), **kw),
    'hiera': lambda **kw: Hiera(
        **{**dict(img_size=(64, 96), embed_dim=12, num_heads=1, stages=(1, 1, 1, 1)), **kw}),
    'cait': lambda **kw: Cait(**{**PLAIN, **kw}),
    'tnt': lambda **kw: TNT(
        **{**dict(img_size=(64, 96), embed_dim=24, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=2), **kw}),
}


def build(name, **kwargs):
    """A model whose every parameter was moved away from where a constant initialisation would hide it."""
    torch.manual_seed(0)
    model = {**BUILDERS, **TOKEN_DROPPING_BUILDERS}[name](**kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def images_for(method, batch_size=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, method.in_chans, *method.img_size, generator=generator)
