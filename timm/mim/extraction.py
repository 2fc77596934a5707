"""Extract hidden states and attention maps of a model for masked images.

Where a mask token stands for masked patches, timm's own functions, `forward_intermediates` and `AttentionExtract`, run
while a forward hook on the patch embedding inserts the token. Where only visible patches are encoded, forward hooks on
the blocks collect their outputs.
"""
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

from timm.models import EmbedStagesMixin
from timm.utils import AttentionExtract

from .backbone import encode_visible, model_name
from .errors import MIMUnsupportedError

__all__ = [
    'BlockRecorder', 'VisibleExtraction', 'VisibleIntermediates', 'attention_maps', 'masked_intermediates',
    'visible_attention_maps', 'visible_intermediates',
]

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
    with _masking(backbone, insert):
        return _extract_attention(backbone, lambda: backbone(images), images.device)


class VisibleIntermediates(NamedTuple):
    """Hidden states of a model that encodes the visible patches of images only.

    Attributes:
        features: What `forward_stages` returns: prefix tokens and visible patches of shape (B, P + K, C).
        hidden_states: Output of each block, usually of the shape of `features`.
        visible: Indices of the visible patches of shape (B, K), in the order of the tokens.
    """
    features: torch.Tensor
    hidden_states: Tuple[torch.Tensor, ...]
    visible: torch.Tensor


def visible_intermediates(backbone: nn.Module, images: torch.Tensor, visible: torch.Tensor) -> VisibleIntermediates:
    """Encode the visible patches of images, and return the output of each block.

    Args:
        backbone: Model that can drop tokens.
        images: Images of shape (B, C, H, W) whose masked pixels are blank, see `MIMMethod.blank`.
        visible: Indices of the visible patches of shape (B, K).

    Raises:
        MIMUnsupportedError: The model has no `blocks`.
    """
    blocks = _list_blocks(backbone)
    if not blocks:
        raise MIMUnsupportedError(f'{model_name(backbone)} has no list of blocks whose outputs are hidden states.')
    recorder = BlockRecorder(blocks)
    try:
        features, states = recorder.record(lambda: encode_visible(backbone, images, visible))
    finally:
        recorder.remove()
    return VisibleIntermediates(features, tuple(states), visible)


def _list_blocks(backbone: nn.Module) -> List[nn.Module]:
    """Return the blocks of a model, or of the encoder that it wraps; none if it has no list of them."""
    for model in (backbone, getattr(backbone, 'encoder', None)):
        blocks = getattr(model, 'blocks', None)
        if isinstance(blocks, (nn.ModuleList, nn.Sequential)):
            return list(blocks)
    return []


class BlockRecorder:
    """Records the outputs of blocks with forward hooks, which stay on the blocks and do nothing between recordings.

    The hooks are registered once, since `torch.compile` cannot trace their registration.

    Args:
        blocks: Blocks, or a model whose blocks are recorded.
    """

    def __init__(self, blocks: Union[nn.Module, Sequence[nn.Module]]) -> None:
        blocks = _list_blocks(blocks) if isinstance(blocks, nn.Module) else blocks
        self.outputs: Optional[Dict[int, torch.Tensor]] = None
        # a bound method and no closure: the hooks of a copied model record into the copy of the recorder
        self.handles = [block.register_forward_hook(partial(self._keep, n)) for n, block in enumerate(blocks)]

    def record(self, encode: Callable[[], torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Call a function that runs the model, and return its result and the outputs of the blocks.

        A block that returns a tuple, as those of TNT return pixels and patches, is recorded by the last member.

        Raises:
            RuntimeError: Gradients cannot reach the outputs, because gradient checkpointing is reentrant.
        """
        self.outputs = {}  # by number, since reentrant checkpointing may run a block twice
        try:
            features = encode()
            outputs = [self.outputs[number] for number in sorted(self.outputs)]
        finally:
            self.outputs = None
        if features.requires_grad and not all(output.requires_grad for output in outputs):
            raise RuntimeError(
                'Outputs of blocks get no gradient with reentrant checkpointing; use the other kind, '
                'timm.layers.set_reentrant_ckpt(False).')
        return features, outputs

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def _keep(self, number: int, module: nn.Module, args: Any, output: Any) -> None:
        if self.outputs is not None:
            self.outputs[number] = output[-1] if isinstance(output, tuple) else output


def visible_attention_maps(
        backbone: nn.Module,
        images: torch.Tensor,
        visible: torch.Tensor,
) -> Dict[str, torch.Tensor]:
    """Compute the attention maps of a model that encodes the visible patches of images only, in eval mode.

    Args:
        backbone: Model that can drop tokens.
        images: Images of shape (B, C, H, W) whose masked pixels are blank, see `MIMMethod.blank`.
        visible: Indices of the visible patches of shape (B, K).

    Returns:
        Maps after the softmax of shape (B, heads, P + K, P + K), by the names of the modules.

    Raises:
        MIMUnsupportedError: The model has no attention maps.
    """
    return _extract_attention(backbone, lambda: encode_visible(backbone, images, visible), images.device)


class VisibleExtraction:
    """Part of a method (`MIMMethod`) whose model encodes the visible patches only: hidden states and attention maps."""

    def forward_intermediates(self, images: torch.Tensor, mask: Any) -> VisibleIntermediates:
        """Return the hidden states of the model, which encodes the visible patches only.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Mask in the form that the method's `given_mask` describes.

        Raises:
            MIMUnsupportedError: The model has no list of blocks.
        """
        return visible_intermediates(self.backbone, *self._hide_masked(images, mask))

    def attention_maps(self, images: torch.Tensor, mask: Any) -> Dict[str, torch.Tensor]:
        """Return the attention maps of the model among prefix tokens and visible patches, in eval mode.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: As for `forward_intermediates`, whose `visible` names the patches of queries and keys.

        Returns:
            Maps after the softmax of shape (B, heads, P + K, P + K), by the names of the modules.

        Raises:
            MIMUnsupportedError: The model has no attention maps.
        """
        return visible_attention_maps(self.backbone, *self._hide_masked(images, mask))

    def visible_patches(self, mask: Any) -> torch.Tensor:
        """Return the indices (B, K) of the visible patches of a mask that `given_mask` has checked."""
        return mask.visible

    def _hide_masked(self, images: torch.Tensor, mask: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return images whose masked pixels are 0, and the indices (B, K) of the visible patches."""
        self._check_images(images)
        mask = self.given_mask(mask, images)
        return self.blank(images, mask), self.visible_patches(mask)


def _extract_attention(backbone: nn.Module, encode: Callable[[], Any], device: torch.device) -> Dict[str, torch.Tensor]:
    """Collect the attention maps that a forward pass of a model makes, in eval mode."""
    training = backbone.training
    with _without_fused_attention(backbone):
        try:
            extract = AttentionExtract(backbone, method='hook')
        except RuntimeError as error:
            raise MIMUnsupportedError(f'{model_name(backbone)} has no attention maps: {error}') from error
        try:
            encode()
            return dict(extract.hooks.get_output(device=device))
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
