"""Format of microsoft/SimMIM.

The tensor names are those of `models/simmim.py`, `models/vision_transformer.py` and `models/swin_transformer.py` in
that repository. Its vision transformer is BEiT's.
"""
import math
import re
from functools import partial
from typing import Any, Callable, Dict, Mapping

import torch

from timm.models.beit import gen_relative_position_index
from timm.models.swin_transformer import get_relative_position_index

from .checkpoint import BACKBONE, Hints, Recipe, Tensors
from .files import Source
from .foreign import ForeignFormat, Names, move_downsampling
from .geometry import TensorProblem

__all__ = ['MicrosoftSimMIM', 'swin_position_indices']

_ATTENTION_MASK = re.compile(r'encoder\.layers\.(\d)\.blocks\.\d+\.attn_mask')


class MicrosoftSimMIM(ForeignFormat):
    """SimMIM: a file with a dictionary `model`, which contains constant position indices and attention masks."""
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

    def constants(self, recipe: Recipe) -> Dict[str, Callable[[], torch.Tensor]]:
        model = recipe.backbone
        if hasattr(model, 'layers'):
            return {**swin_position_indices(model, 'encoder.', '.attn.relative_position_index'), **_swin_masks(model)}
        index = partial(gen_relative_position_index, model.patch_embed.grid_size)
        constants = {
            f'encoder.blocks.{i}.attn.relative_position_index': index
            for i, block in enumerate(model.blocks) if block.attn.relative_position_bias_table is not None}
        if model.rel_pos_bias is not None:
            constants['encoder.rel_pos_bias.relative_position_index'] = index
        return constants

    def hints(self, source: Source) -> Hints:
        """Compute the image size of a Swin model from the shape of an attention mask for shifted windows."""
        for name, tensor in source.tensors.items():
            stage = _ATTENTION_MASK.fullmatch(name)
            if stage is not None and tensor.ndim == 3:  # windows, positions, positions
                patches = source.tensors.get('encoder.patch_embed.proj.weight')
                if patches is None or patches.ndim != 4:
                    raise TensorProblem(BACKBONE + 'patch_embed.proj.weight', 'missing or of another shape')
                side = math.isqrt(tensor.shape[0] * tensor.shape[1]) * 2 ** int(stage[1]) * patches.shape[-1]
                return Hints(img_size=(side, side))
        return Hints()


def swin_position_indices(
        model: torch.nn.Module,
        prefix: str,
        suffix: str,
) -> Dict[str, Callable[[], torch.Tensor]]:
    """Return functions that make the relative position indices of all blocks of a Swin model, by tensor name.

    Args:
        model: Swin model.
        prefix: Beginning of the tensor names, before `layers`.
        suffix: End of the tensor names, after the number of the block.
    """
    return {
        f'{prefix}layers.{stage}.blocks.{i}{suffix}': partial(get_relative_position_index, *block.window_size)
        for stage, layer in enumerate(model.layers) for i, block in enumerate(layer.blocks)}


def _swin_masks(model: torch.nn.Module) -> Dict[str, Callable[[], torch.Tensor]]:
    """Return functions that make the attention masks for shifted windows of a Swin model, by tensor name."""
    return {
        f'encoder.layers.{stage}.blocks.{i}.attn_mask': partial(
            block.get_attn_mask, device='cpu', dtype=torch.float32)
        for stage, layer in enumerate(model.layers) for i, block in enumerate(layer.blocks) if any(block.shift_size)}
