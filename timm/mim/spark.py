"""SparK: encode the visible cells of images with a convolutional model, and predict the masked pixels with a UNet.

The features of visible cells do not depend on masked ones. At each scale of the model a mask token takes the place of
the masked cells.

Paper: `Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling`
    - https://arxiv.org/abs/2301.03580

The formulas are those of keyu-tian/SparK, `pretrain/spark.py`, `encoder.py` and `decoder.py`. `masked_convolution` runs
the model, which need not be written for it.

Shape letters: B batch, C channels, H x W pixels, h x w cells of the deepest feature map, which are the patches of this
method.
"""
import math
from fractions import Fraction
from numbers import Real
from typing import Any, Dict, List, Optional, Set, Tuple, Type, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import LayerNorm2d, trunc_normal_
from timm.models._model_class import get_model_class

from .backbone import model_name, remove_unused, to_pair
from .errors import MIMUnsupportedError
from .factory import register_mim
from .maskable_models import why_not_maskable, why_not_maskable_model
from .masked_convolution import VisibleMap, masked_images
from .masking import default_mask_unit, random_mask, unit_grid, upsample_mask
from .method import MIMMethod
from .output import WITH_TRUE_STATISTICS, MIMOutput, View
from .scales import dry_run_scales, masked_scales
from .targets import (
    full_precision,
    masked_loss,
    normalized_pixel_target,
    patch_statistics,
    patchify,
    pixel_target,
    unpatchify,
)

__all__ = ['SparK', 'UNetDecoder']


@register_mim('spark')
class SparK(MIMMethod):
    """SparK on any model whose operations all have a rule in `timm.mim.masked_convolution`.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with at least one visible cell in each sample.
    Prediction and target are pixels of shape (B, C, H, W). With `norm_pix` each cell is normalised by its own mean and
    variance.

    Running statistics of batch norms are those of visible cells, as in the reference. After training, the model is a
    plain timm model for whole images.

    It differs from the reference in pools: max pools skip masked cells where the reference reads zeros, and average
    pools divide by the number of visible cells. Results for the models of the reference, ResNet and ConvNeXt, are the
    same.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of the mask units to mask, rounded to the nearest whole number of units.
        mask_unit: Size of a mask unit in pixels, one number or (height, width), a multiple of the stride of the deepest
            feature map. If None, the multiple nearest to 32.
        norm_pix: Predict the pixels of each cell normalised by the cell's own mean and variance.
        decoder_dim: Width of the decoder at the deepest scale. It halves with each scale.
        sync_batch_norm: Batch norms of the model take their statistics over the visible cells of all processes, as
            `torch.nn.SyncBatchNorm` does, which itself is not supported.

    Raises:
        MIMUnsupportedError: The model has an operation that cannot be masked, or no feature map.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    protocol = ('features_to_map', 'patch_grid')
    works = "list_mim_models('spark') names the models that work, resnet50 or convnext_tiny for example"
    num_scales = 4

    @classmethod
    def unsupported_reason(cls, model: Union[nn.Module, Type[nn.Module]]) -> Optional[str]:
        """Return why the method does not support a model or model class, or None if it does."""
        model_cls = model if isinstance(model, type) else type(model)
        reason = super().unsupported_reason(model)
        if reason is None and not hasattr(model_cls, 'forward_intermediates'):
            reason = f'{model_cls.__name__} has no forward_intermediates to take feature maps from'
        return reason or why_not_maskable(model_cls) or cls._why_not_decodable(model_cls)

    @classmethod
    def unsupported_model(cls, name: str) -> Optional[str]:
        """Return why the method does not support a registered model, or None if it does. No model is built."""
        return cls.unsupported_reason(get_model_class(name)) or why_not_maskable_model(name)

    @classmethod
    def _why_not_decodable(cls, model_cls: type) -> Optional[str]:
        if model_cls.__name__ == 'ConvMixer':
            return 'ConvMixer has patches of 7 or 14 pixels, the decoder needs a power of two; FCMAE serves it'
        return None

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.6,
            mask_unit: Optional[Any] = None,
            norm_pix: bool = True,
            decoder_dim: int = 768,
            sync_batch_norm: bool = False,
    ) -> None:
        super().__init__(backbone, img_size)
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix
        self.sync_batch_norm = sync_batch_norm
        self.reconstructs_pixels = not norm_pix
        scales = dry_run_scales(backbone, self.in_chans, self.img_size, self.num_scales)
        self.patch_stride = self.encoder_stride = scales.stride
        self.grid_size = self._patch_grid(self.img_size)
        self.mask_unit = self._find_mask_unit(mask_unit)
        self.num_visible = self._count_visible(math.prod(self._unit_grid()))
        remove_unused(backbone, scales.unused)
        weight = next(backbone.parameters())
        self._make_decoder(scales.channels, decoder_dim, {'device': weight.device, 'dtype': weight.dtype})

    def _make_decoder(self, channels: List[int], decoder_dim: int, dd: Dict[str, Any]) -> None:
        depth = int(math.log2(self.encoder_stride[0]))
        if self.encoder_stride != (2 ** depth, 2 ** depth):
            raise MIMUnsupportedError(
                f'SparK cannot serve {model_name(self.backbone)}: its feature map has stride {self.encoder_stride}, '
                f'the decoder doubles the resolution with each block and needs a power of two; {self.works}.')
        if not isinstance(decoder_dim, int) or decoder_dim < 1 or decoder_dim % 2 ** depth:
            raise ValueError(
                f'decoder_dim must be a multiple of {2 ** depth}, as the decoder halves its width {depth} times, got '
                f'{decoder_dim!r}.')
        # scale 0 is the deepest, as in the reference
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(trunc_normal_(torch.empty(1, width, 1, 1, **dd), std=.02, a=-.02, b=.02))
            for width in channels)
        self.densify_norms = nn.ModuleList(_norm_like(self.backbone, width, dd) for width in channels)
        self.densify_projs = nn.ModuleList()
        for scale, width in enumerate(channels):
            out_width, size = decoder_dim // 2 ** scale, 3 if scale else 1
            is_identity = scale == 0 and width == out_width
            self.densify_projs.append(
                nn.Identity() if is_identity else nn.Conv2d(width, out_width, size, padding=size // 2, **dd))
        self.decoder = UNetDecoder(decoder_dim, depth, self.in_chans, **dd)

    def predict(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict the pixels of images, with `norm_pix` those of normalised cells.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Masked cells of shape (B, h, w) bool.

        Returns:
            Pixels of shape (B, C, H, W) float32.
        """
        maps = masked_scales(self.backbone, masked_images(images, mask, self.sync_batch_norm), self.num_scales)
        return full_precision(self.decode(maps))

    def decode(self, maps: List[VisibleMap]) -> torch.Tensor:
        """Fill the masked cells of feature maps, the deepest first, and predict pixels of shape (B, C, H, W)."""
        dense = []
        for features, norm, token, proj in zip(maps, self.densify_norms, self.mask_tokens, self.densify_projs):
            features = norm(features)
            dense.append(proj(torch.where(features.visible, features.data, token.to(features.data.dtype))))
        return self.decoder(dense)

    def make_target(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the pixels in float32, with `norm_pix` those of normalised cells."""
        return normalized_pixel_target(images, self.encoder_stride) if self.norm_pix else pixel_target(images)

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> MIMOutput:
        """Compute the mean squared error over the masked pixels of the batch."""
        loss = masked_loss(prediction, target, self.pixel_mask(mask), F.mse_loss)
        return MIMOutput(loss, prediction, target, mask)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make a mask (B, h, w) bool from noise. The units with the smallest noise are visible.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Ignored, since the method accepts one image size only.
        """
        mask = ~random_mask(noise, self.num_visible).unflatten(1, self._unit_grid())
        return upsample_mask(mask, tuple(unit // cell for unit, cell in zip(self.mask_unit, self.encoder_stride)))

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w), and return it in the shape (B, h, w).

        The host reads the result of the check from the device, which it has to wait for.

        Raises:
            ValueError: Shape, dtype or device are wrong, a sample has no visible cell, or no cell is masked.
        """
        mask = self._check_visible_cells(self._check_mask(mask, images))
        _check(mask.any(), 'mask must mask at least one cell, got none.')
        return mask

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape (B, number of mask units) of the noise for the masks of a batch."""
        return batch_size, math.prod(self._unit_grid())

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all pixels of images from the visible cells, with `norm_pix` those of normalised cells.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked cells, bool of shape (B, h, w) or (B, h * w), True is masked, one visible in each sample.

        Returns:
            Prediction of shape (B, C, H, W) float32.
        """
        self._check_images(images)
        mask = self._check_visible_cells(self._check_mask(mask, images))
        return self.predict(self.blank(images, mask), mask)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of predicting zeros. With `norm_pix`, zero is the mean of each cell."""
        loss = masked_loss(torch.zeros_like(output.target), output.target, self.pixel_mask(output.mask), F.mse_loss)
        return {'loss_of_patch_mean' if self.norm_pix else 'loss_of_zeros': loss}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of a step. With `norm_pix`, each predicted cell gets its true mean and variance."""
        views = super().views(images, noise)
        if self.norm_pix:
            mask = self.make_mask(noise)
            hole = self.pixel_mask(mask)
            prediction = self.reconstruct(images, mask)
            mean, std = patch_statistics(patchify(images, self.encoder_stride))
            pixels = unpatchify(patchify(prediction, self.encoder_stride) * std + mean, self.encoder_stride,
                                self.grid_size).to(images.dtype)
            views.append(View(WITH_TRUE_STATISTICS, torch.where(hole, pixels, images)))
        return views

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        tokens = (name for name, _ in self.named_parameters() if name.startswith('mask_token'))
        return super().no_weight_decay() | set(tokens)

    @staticmethod
    def _check_visible_cells(mask: torch.Tensor) -> torch.Tensor:
        visible = (~mask).flatten(1).any(dim=1).all()
        _check(visible, 'mask must leave at least one cell visible in each sample, a sample has none.')
        return mask

    def _count_visible(self, num_units: int) -> int:
        if not isinstance(self.mask_ratio, Real) or not 0 < self.mask_ratio < 1:
            raise ValueError(f'mask_ratio must be a number between 0 and 1, both excluded, got {self.mask_ratio!r}.')
        count = round(num_units * (1 - Fraction(str(self.mask_ratio))))
        self._check_visible(count, num_units)
        return count

    def _check_visible(self, count: int, num_units: int) -> None:
        if not 0 < count < num_units:
            raise ValueError(
                f'mask_ratio {self.mask_ratio} masks {num_units - count} of the {num_units} units of the image, at '
                f'least one must be masked and one visible: take another ratio or smaller units.')

    def _find_mask_unit(self, mask_unit: Optional[Any]) -> Tuple[int, int]:
        if mask_unit is None:
            return default_mask_unit(self.img_size, self.encoder_stride, self.encoder_stride, self.mask_ratio)
        mask_unit = to_pair(mask_unit, 'mask_unit')
        unit_grid(self.img_size, mask_unit, self.encoder_stride)  # raises where it does not fit
        return mask_unit

    def _unit_grid(self) -> Tuple[int, int]:
        return unit_grid(self.img_size, self.mask_unit, self.encoder_stride)


class UNetDecoder(nn.Module):
    """Decoder of SparK. Each block doubles the resolution and halves the width.

    Args:
        width: Width of the deepest features.
        depth: Number of blocks.
        out_chans: Number of image channels.
    """

    def __init__(self, width: int, depth: int, out_chans: int = 3, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        widths = [width // 2 ** scale for scale in range(depth + 1)]
        self.dec = nn.ModuleList(UNetBlock(*pair, **dd) for pair in zip(widths, widths[1:]))
        self.proj = nn.Conv2d(widths[-1], out_chans, kernel_size=1, **dd)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=.02)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if getattr(module, 'bias', None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, features: List[torch.Tensor]) -> torch.Tensor:
        """Decode features. Those of a scale are added to the input of its block.

        Args:
            features: Features of shape (B, width / 2^i, h * 2^i, w * 2^i), i = 0, the deepest, first.

        Returns:
            Pixels of shape (B, out_chans, h * 2^depth, w * 2^depth).
        """
        x = features[0]
        for scale, block in enumerate(self.dec):
            if 0 < scale < len(features):
                x = x + features[scale]
            x = block(x)
        return self.proj(x)


class UNetBlock(nn.Module):
    """Double the resolution with a transposed convolution, then apply two convolutions."""

    def __init__(self, in_chans: int, out_chans: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.up_sample = nn.ConvTranspose2d(in_chans, in_chans, kernel_size=4, stride=2, padding=1, **dd)
        self.conv = nn.Sequential(
            nn.Conv2d(in_chans, in_chans, kernel_size=3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(in_chans, **dd),
            nn.ReLU6(inplace=True),
            nn.Conv2d(in_chans, out_chans, kernel_size=3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(out_chans, **dd),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.up_sample(x))


def _norm_like(backbone: nn.Module, width: int, dd: Dict[str, Any]) -> nn.Module:
    """Return a batch norm if the model has batch norms, else a layer norm, as in the reference."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        return nn.BatchNorm2d(width, **dd)
    return LayerNorm2d(width, eps=1e-6, **dd)


def _check(condition: torch.Tensor, message: str) -> None:
    """Raise a ValueError if a condition is false; in compiled code, which cannot wait for the device, an assertion."""
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
