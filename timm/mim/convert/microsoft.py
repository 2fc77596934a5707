""" Format of microsoft/SimMIM

The names are those of `models/simmim.py`, `models/vision_transformer.py` and `models/swin_transformer.py` there. Its
vision transformer is the one of BEiT.
"""
import math
from typing import Any, Mapping

import torch

from timm.models.beit import gen_relative_position_index
from timm.models.swin_transformer import get_relative_position_index

from .checkpoint import BACKBONE, Hints, Recipe, Tensors
from .files import Source
from .foreign import ForeignFormat
from .names import Names, move_downsampling

__all__ = ['MicrosoftSimMIM', 'swin_position_indices']


class MicrosoftSimMIM(ForeignFormat):
    """ SimMIM: a dictionary `model`, with tables of positions and masks that are constants."""
    name = 'microsoft-simmim'
    holds = 'Beit and Swin models'
    method = 'simmim'
    families = ('beit', 'swin')
    names = Names([
        ('encoder.mask_token', 'mask_token'),
        ('encoder.', BACKBONE),
        ('decoder.0.', 'decoder.proj.'),
    ])

    def recognises(self, source: Source) -> bool:
        beginnings = ('encoder.mask_token', 'encoder.patch_embed.', 'encoder.blocks.', 'encoder.layers.')
        return source.layout != 'ijepa' and any(name.startswith(beginnings) for name in source.tensors)

    def family(self, tensors: Mapping[str, Any]) -> str:
        return 'swin' if any(name.startswith(BACKBONE + 'layers.') for name in tensors) else 'beit'

    def to_ours(self, tensors: Tensors) -> Tensors:
        return move_downsampling(super().to_ours(tensors), 1)

    def from_ours(self, tensors: Tensors) -> Tensors:
        return super().from_ours(move_downsampling(tensors, -1))

    def constants(self, recipe: Recipe) -> Tensors:
        model = recipe.backbone
        if hasattr(model, 'layers'):
            return {**swin_position_indices(model, 'encoder.', '.attn.relative_position_index'), **_swin_masks(model)}
        index = gen_relative_position_index(model.patch_embed.grid_size)
        constants = {
            f'encoder.blocks.{i}.attn.relative_position_index': index
            for i, block in enumerate(model.blocks) if block.attn.relative_position_bias_table is not None}
        if model.rel_pos_bias is not None:
            constants['encoder.rel_pos_bias.relative_position_index'] = index
        return constants

    def hints(self, source: Source) -> Hints:
        """ The image size of a Swin model, from the mask of a shifted window.
        """
        for name, tensor in source.tensors.items():
            if name.endswith('.attn_mask') and tensor.ndim == 3:  # windows, positions, positions
                stage = int(name.split('.')[2])
                patch_size = source.tensors['encoder.patch_embed.proj.weight'].shape[-1]
                side = math.isqrt(tensor.shape[0] * tensor.shape[1]) * 2 ** stage * patch_size
                return Hints(img_size=(side, side))
        return Hints()


def swin_position_indices(model: torch.nn.Module, prefix: str, suffix: str) -> Tensors:
    """ Indices of relative positions in the windows of all blocks of a Swin model.

    Args:
        model: Swin model.
        prefix: Beginning of the name before `layers`.
        suffix: End of the name after the number of the block.
    """
    return {
        f'{prefix}layers.{stage}.blocks.{i}{suffix}': get_relative_position_index(*block.window_size)
        for stage, layer in enumerate(model.layers) for i, block in enumerate(layer.blocks)}


def _swin_masks(model: torch.nn.Module) -> Tensors:
    """ Masks of the shifted windows of a Swin model.
    """
    return {
        f'encoder.layers.{stage}.blocks.{i}.attn_mask': block.get_attn_mask(device='cpu', dtype=torch.float32)
        for stage, layer in enumerate(model.layers) for i, block in enumerate(layer.blocks) if any(block.shift_size)}
