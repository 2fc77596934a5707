"""FCMAE: encode the visible cells of images with a convolutional model, and predict the masked pixels with one block.

A mask token takes the place of masked cells in the deepest feature map. The decoder is one ConvNeXt block.

Paper: `ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders`
    - https://arxiv.org/abs/2301.00808

The formulas are those of facebookresearch/ConvNeXt-V2, `models/fcmae.py`, with two corrections. In the sparse model of
the reference, GRN takes its norm over all samples of a batch, which differs from fine-tuning. Here it takes the norm
over one sample, as the JAX code that made the published weights does. The reference draws the initial weights of
convolutions from a normal distribution with standard deviation 1, here it is 0.02.
"""
import math
from fractions import Fraction
from typing import Any, Dict, List, Optional

import torch
import torch.nn as nn

from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models.convnext import ConvNeXtBlock

from .decoder import PixelDecoder
from .factory import register_mim
from .masked_convolution import VisibleMap
from .spark import SparK

__all__ = ['FCMAE']


@register_mim('fcmae')
class FCMAE(SparK):
    """FCMAE on any model whose operations all have a rule in `timm.mim.masked_convolution`.

    It shares encoder, masks, target and loss with `SparK`, and differs in the decoder.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of the mask units to mask, rounded up to whole units.
        mask_unit: Size of a mask unit in pixels, one number or (height, width), a multiple of the stride of the feature
            map. If None, the multiple nearest to 32.
        norm_pix: Predict the pixels of each cell normalised by the cell's own mean and variance.
        decoder_dim: Width of the decoder.
        decoder_depth: Number of ConvNeXt blocks of the decoder.
        sync_batch_norm: Batch norms of the model take their statistics over the visible cells of all processes.

    Raises:
        MIMUnsupportedError: The model has an operation that cannot be masked, or no feature map.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    works = "list_mim_models('fcmae') names the models that work, convnextv2_tiny for example"
    num_scales = 1

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.6,
            mask_unit: Optional[Any] = None,
            norm_pix: bool = True,
            decoder_dim: int = 512,
            decoder_depth: int = 1,
            sync_batch_norm: bool = False,
    ) -> None:
        if not isinstance(decoder_depth, int) or decoder_depth < 1:
            raise ValueError(f'decoder_depth must be a number of blocks, 1 or more, got {decoder_depth!r}.')
        self.decoder_depth = decoder_depth
        super().__init__(backbone, img_size, mask_ratio, mask_unit, norm_pix, decoder_dim, sync_batch_norm)

    @classmethod
    def _why_not_decodable(cls, model_cls: type) -> Optional[str]:
        return None

    def _make_decoder(self, channels: List[int], decoder_dim: int, dd: Dict[str, Any]) -> None:
        if not isinstance(decoder_dim, int) or decoder_dim < 1:
            raise ValueError(f'decoder_dim must be a width, 1 or more, got {decoder_dim!r}.')
        self.proj = nn.Conv2d(channels[0], decoder_dim, kernel_size=1, **dd)
        self.mask_token = nn.Parameter(torch.empty(1, decoder_dim, 1, 1, **dd))
        self.decoder = nn.Sequential(*[
            ConvNeXtBlock(decoder_dim, ls_init_value=None, use_grn=True, **dd) for _ in range(self.decoder_depth)])
        self.pred = PixelDecoder(decoder_dim, self.encoder_stride, self.in_chans, **dd)
        self.grad_checkpointing = False
        for module in (*self.proj.modules(), *self.decoder.modules(), *self.pred.modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.mask_token, std=.02)

    def decode(self, maps: List[VisibleMap]) -> torch.Tensor:
        """Fill the masked cells of the deepest feature map, and predict pixels of shape (B, C, H, W)."""
        features = self.proj(maps[0])
        x = torch.where(features.visible, features.data, self.mask_token.to(features.data.dtype))
        x = checkpoint_seq(self.decoder, x) if self.grad_checkpointing else self.decoder(x)
        return self.pred(x)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model and the decoder."""
        super().set_grad_checkpointing(enable)
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self):
        """Return the parameters without weight decay. The mask token has weight decay, as in the reference."""
        return super().no_weight_decay() - {'mask_token'}

    def _count_visible(self, num_units: int) -> int:
        count = min(super()._count_visible(num_units), math.floor(num_units * (1 - Fraction(str(self.mask_ratio)))))
        self._check_visible(count, num_units)
        return count
