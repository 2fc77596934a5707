"""Copy weights from timm's models to Hugging Face's."""
from typing import Dict

import torch

BLOCK = {
    'attention.o_proj': 'attn.proj',
    'layernorm_before': 'norm1',
    'layernorm_after': 'norm2',
    'attention.q_proj': 'attn.0.qkv',
    'attention.k_proj': 'attn.1.qkv',
    'attention.v_proj': 'attn.2.qkv',
}
VIT = {
    'embeddings.cls_token': 'cls_token',
    'embeddings.position_embeddings': 'pos_embed',
    'embeddings.patch_embeddings.projection': 'patch_embed.proj',
}
MAE = {
    **{f'vit.{theirs}': f'backbone.{ours}' for theirs, ours in VIT.items()},
    'vit.layers': 'backbone.blocks',
    'vit.layernorm.': 'backbone.norm.',
    'decoder.decoder_embed': 'decoder_embed',
    'decoder.decoder_pred': 'decoder_pred',
    'decoder.decoder_pos_embed': 'decoder.pos_embed',
    'decoder.decoder_layers': 'decoder.blocks',
    'decoder.decoder_norm': 'decoder.norm',
}
HEAD = {'decoder.0.': 'decoder.proj.'}
SIMMIM_VIT = {
    'vit.embeddings.mask_token': 'mask_token',
    **{f'vit.{theirs}': f'backbone.{ours}' for theirs, ours in VIT.items()},
    'vit.layers': 'backbone.blocks',
    'vit.layernorm.': 'backbone.norm.',
    **HEAD,
}
SIMMIM_SWIN = {
    'swin.embeddings.mask_token': 'mask_token',
    'swin.embeddings.patch_embeddings.projection': 'backbone.patch_embed.proj',
    'swin.embeddings.norm': 'backbone.patch_embed.norm',
    'swin.encoder.layers': 'backbone.layers',
    'swin.layernorm.': 'backbone.norm.',
    'attention.relative_position_bias.relative_position_bias_table': 'attn.relative_position_bias_table',
    **HEAD,
}


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module, names: Dict[str, str]) -> None:
    """Copy the weights of a method to a model of transformers.

    Args:
        ours: Method of `timm.mim`.
        theirs: Model of transformers, changed in place.
        names: Mapping from parts of their names to parts of our names.
    """
    tensors = ours.state_dict()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if 'relative_position_index' not in name:
                tensor.copy_(_find(tensors, _our_name(name, {**BLOCK, **names})).view_as(tensor))


def _our_name(name: str, names: Dict[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    if 'downsample' in name:  # at the end of a stage in transformers, at the start of the next stage in timm
        prefix, layers, number, *rest = name.split('.')
        name = '.'.join([prefix, layers, str(int(number) + 1), *rest])
    return name


def _find(tensors: Dict[str, torch.Tensor], name: str) -> torch.Tensor:
    for part in range(3):  # separate tensors in transformers, concatenated in timm
        if f'.attn.{part}.qkv' in name:
            return tensors[name.replace(f'.attn.{part}.qkv', '.attn.qkv')].chunk(3)[part]
    return tensors[name]
