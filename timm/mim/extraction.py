"""Hidden States and Attention Maps of a Model That Sees Masked Images

By timm's own extraction, `forward_intermediates` and `AttentionExtract`, while the mask token stands in the place of
masked patches.
"""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

import torch
import torch.nn as nn

from timm.models import EmbedStagesMixin
from timm.utils import AttentionExtract

from .backbone import model_name
from .errors import MIMUnsupportedError

__all__ = ['attention_maps', 'masked_intermediates']

InsertMaskToken = Callable[[torch.Tensor], torch.Tensor]


def masked_intermediates(backbone: nn.Module, images: torch.Tensor, insert: InsertMaskToken, **options: Any) -> Any:
    """What `forward_intermediates` of a model gives for images with masked patches.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W).
        insert: Function of patch tokens (B, N, D) that puts the mask token in the place of some.
        **options: Options of the model's `forward_intermediates`.

    Raises:
        MIMUnsupportedError: The model has no intermediates, or patch tokens that cannot be replaced on the way.
    """
    if not hasattr(backbone, 'forward_intermediates'):
        raise MIMUnsupportedError(f'{model_name(backbone)} has no forward_intermediates.')
    with _masking(backbone, insert):
        return backbone.forward_intermediates(images, **options)


def attention_maps(backbone: nn.Module, images: torch.Tensor, insert: InsertMaskToken) -> Dict[str, torch.Tensor]:
    """Attention maps after the softmax, by the names of the modules, of a model in eval mode.

    Attention is computed without fused kernels for the time of the call, those do not make a map.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W).
        insert: Function of patch tokens (B, N, D) that puts the mask token in the place of some.

    Raises:
        MIMUnsupportedError: The model has no attention maps, or patch tokens that cannot be replaced on the way.
    """
    training = backbone.training
    with _masking(backbone, insert), _without_fused_attention(backbone):
        try:
            extract = AttentionExtract(backbone, method='hook')
        except RuntimeError as error:
            raise MIMUnsupportedError(f'{model_name(backbone)} has no attention maps: {error}') from error
        try:
            return dict(extract(images))
        finally:
            for handle in extract.hooks._handles:
                handle.remove()
            backbone.train(training)


@contextmanager
def _masking(backbone: nn.Module, insert: InsertMaskToken) -> Iterator[None]:
    """Replace what the patch embedding of a model returns, which the model's own forward passes do not know of."""
    if type(backbone).embed_patches is not EmbedStagesMixin.embed_patches:
        raise MIMUnsupportedError(
            f'{model_name(backbone)} has no hidden states and attention maps of masked images: its patches do not come '
            f'from one patch_embed.')
    handle = backbone.patch_embed.register_forward_hook(
        lambda module, args, output: backbone.map_tokens(output, insert))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without_fused_attention(backbone: nn.Module) -> Iterator[None]:
    fused = [module for module in backbone.modules() if getattr(module, 'fused_attn', False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
