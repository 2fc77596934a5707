"""Extract hidden states and attention maps of a model for masked images.

timm's own functions, `forward_intermediates` and `AttentionExtract`, run while a forward hook on the patch embedding
replaces masked patches by the mask token.
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
    """Return the result of a model's `forward_intermediates` for images with masked patches.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W).
        insert: Function that replaces masked patch tokens (B, N, D) by the mask token.
        **options: Options of the model's `forward_intermediates`.

    Raises:
        MIMUnsupportedError: The model has no `forward_intermediates`, or overrides `embed_patches`.
    """
    if not hasattr(backbone, 'forward_intermediates'):
        raise MIMUnsupportedError(f'{model_name(backbone)} has no forward_intermediates.')
    with _masking(backbone, insert):
        return backbone.forward_intermediates(images, **options)


def attention_maps(backbone: nn.Module, images: torch.Tensor, insert: InsertMaskToken) -> Dict[str, torch.Tensor]:
    """Return the attention maps after the softmax, by module name. The model runs in eval mode.

    Fused attention is off during the call, since fused kernels do not return an attention map.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W).
        insert: Function that replaces masked patch tokens (B, N, D) by the mask token.

    Raises:
        MIMUnsupportedError: The model has no attention maps, or overrides `embed_patches`.
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
    """Replace masked tokens in the output of `patch_embed` by a forward hook, for any forward pass of the model."""
    if type(backbone).embed_patches is not EmbedStagesMixin.embed_patches:
        raise MIMUnsupportedError(
            f'{model_name(backbone)} cannot return hidden states or attention maps of masked images: its patches do '
            f'not come from a single patch_embed module.')
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
