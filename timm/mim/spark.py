"""SparK

Encodes images as if masked cells did not exist, at all scales of a convolutional model, puts mask tokens in the place
of masked cells at each scale, and predicts the pixels of masked cells with a UNet decoder.

Paper: `Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling`
    - https://arxiv.org/abs/2301.03580

The formulas are those of keyu-tian/SparK, `pretrain/spark.py`, `encoder.py` and `decoder.py`. It runs on any model that
`timm.mim.masked_convolution` can mask: no model is rewritten for it.

Shape letters: B batch, C channels, H x W pixels, h x w cells of the deepest feature map, the patches of this method.
"""
import math
from fractions import Fraction
from numbers import Real
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple, Type, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import LayerNorm2d, trunc_normal_
from timm.models._model_class import get_model_class

from .backbone import check_divides, model_name, remove_unused, to_pair
from .errors import MIMUnsupportedError, first_line
from .factory import register_mim
from .maskable_models import why_not_maskable, why_not_maskable_model
from .masked_convolution import VisibleMap, VisibleUnits, masked_images
from .masking import default_mask_unit, random_mask, unit_grid, upsample_mask
from .meta_run import run_on_meta
from .method import MIMMethod
from .output import WITH_TRUE_STATISTICS, MIMOutput, View
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
    """SparK on any model whose operations `timm.mim.masked_convolution` has a rule for.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with at least one visible cell in each sample.
    Prediction and target are pixels of shape (B, C, H, W), each cell normalised by its own mean and variance.

    Running statistics of batch norms are those of visible cells, as in the reference. After training, the model is a
    plain timm model, which runs on whole images.

    What differs from the reference: max pools skip masked cells instead of reading zeros there, and average pools
    divide by the number of visible cells. For ResNet and ConvNeXt, which the reference covers, results are the same.
    """
    protocol = ('features_to_map', 'patch_grid')
    works = "list_mim_models('spark') names the models that work, resnet50 or convnext_tiny for example"
    num_scales = 4

    @classmethod
    def unsupported_reason(cls, model: Union[nn.Module, Type[nn.Module]]) -> Optional[str]:
        """Why the method cannot serve a model, or model class, None if it can."""
        model_cls = model if isinstance(model, type) else type(model)
        reason = super().unsupported_reason(model)
        if reason is None and not hasattr(model_cls, 'forward_intermediates'):
            reason = f'{model_cls.__name__} has no forward_intermediates to take feature maps from'
        return reason or why_not_maskable(model_cls) or cls._why_not_decodable(model_cls)

    @classmethod
    def unsupported_model(cls, name: str) -> Optional[str]:
        """Why the method cannot serve a registered model, None if it can. Nothing is built."""
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
    ) -> None:
        """
        Args:
            backbone: Model to train.
            img_size: Image size, one number or (height, width), that of the model if None.
            mask_ratio: Share of mask units that is masked, to the nearest number of whole units.
            mask_unit: Size of a mask unit in pixels, one number or (height, width), a multiple of the stride of the
                deepest feature map. If None the multiple that is nearest to 32.
            norm_pix: Predict the pixels of each cell normalised by its own mean and variance.
            decoder_dim: Width of the decoder at the deepest scale. It halves with each scale.

        Raises:
            MIMUnsupportedError: The model has an operation that cannot be masked, or no feature map.
            ValueError: A value that is not allowed, or an image size that the model does not take.
        """
        super().__init__(backbone, img_size)
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix
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
        # as in the reference: 0 is the deepest scale
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
        """Predict the pixels of images.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Masked cells of shape (B, h, w) bool.

        Returns:
            Pixels of shape (B, C, H, W) float32, with `norm_pix` of normalised cells.
        """
        maps = masked_scales(self.backbone, masked_images(images, mask), self.num_scales)
        return full_precision(self.decode(maps))

    def decode(self, maps: List[VisibleMap]) -> torch.Tensor:
        """Predict pixels of feature maps, the deepest first."""
        dense = []
        for features, norm, token, proj in zip(maps, self.densify_norms, self.mask_tokens, self.densify_projs):
            features = norm(features)
            dense.append(proj(torch.where(features.visible, features.data, token.to(features.data.dtype))))
        return self.decoder(dense)

    def make_target(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalise the pixels of each cell with `norm_pix`."""
        return normalized_pixel_target(images, self.encoder_stride) if self.norm_pix else pixel_target(images)

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> MIMOutput:
        """Compute the mean squared error over what is masked in the batch."""
        loss = masked_loss(prediction, target, self.pixel_mask(mask), F.mse_loss)
        return MIMOutput(loss, prediction, target, mask)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make the masked cells (B, h, w) bool of noise: the units of smallest noise stay visible.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Not used, the method takes images of one size.
        """
        mask = ~random_mask(noise, self.num_visible).unflatten(1, self._unit_grid())
        return upsample_mask(mask, tuple(unit // cell for unit, cell in zip(self.mask_unit, self.encoder_stride)))

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Shape (B, number of mask units) of the noise that makes the masks of a batch."""
        return batch_size, math.prod(self._unit_grid())

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all pixels of images from what is visible, with `norm_pix` normalised cell by cell.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked cells, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Prediction of shape (B, C, H, W) float32.
        """
        self._check_images(images)
        mask = self._check_mask(mask, images)
        return self.predict(self.blank(images, mask), mask)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """The loss of predicting zeros: with `norm_pix` the mean of each cell."""
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
    """The decoder of SparK: each block doubles the resolution and halves the width, and adds the features there."""

    def __init__(self, width: int, depth: int, out_chans: int = 3, device=None, dtype=None) -> None:
        """
        Args:
            width: Width of the deepest features.
            depth: Number of blocks.
            out_chans: Number of image channels.
        """
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
        """Decode features, the deepest first, each of the next twice the size and half the width of the one before.

        Args:
            features: Features of shape (B, width / 2^i, h * 2^i, w * 2^i).

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
    """Doubles the resolution, then mixes with two convolutions."""

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


class Scales(NamedTuple):
    """The feature maps of a model, as a dry run found them.

    Attributes:
        channels: Widths of the feature maps, the deepest first.
        stride: Stride (height, width) of the deepest feature map in pixels.
        unused: Names of the trainable parameters that the feature maps do not depend on.
    """
    channels: List[int]
    stride: Tuple[int, int]
    unused: List[str]


def masked_scales(backbone: nn.Module, images: VisibleMap, num_scales: int) -> List[VisibleMap]:
    """Feature maps (B, C, h * 2^i, w * 2^i) of a model, the deepest first: the last one of each size.

    Args:
        backbone: Model.
        images: Images with masked pixels.
        num_scales: Largest number of feature maps.
    """
    features, maps = backbone.forward_intermediates(images)
    by_size = {tuple(x.shape[-2:]): x for x in maps}
    last = maps[-1]
    if isinstance(features, VisibleMap) and features.ndim == 4:
        features = features.permute(0, 3, 1, 2) if getattr(backbone, 'grid_format', '') == 'NHWC' else features
        if features.shape[-2:] == last.shape[-2:]:
            last = features  # behind the last norm, or the last convolution, of the model
    height, width = last.shape[-2:]
    scales = [last]
    while len(scales) < num_scales and (height * 2, width * 2) in by_size:
        height, width = height * 2, width * 2
        scales.append(by_size[height, width])
    return scales


def dry_run_scales(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int], num_scales: int) -> Scales:
    """Find the feature maps of a model for masked images of a size, without running the model.

    Args:
        backbone: Model.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        num_scales: Largest number of feature maps.

    Raises:
        MIMUnsupportedError: The model has an operation that cannot be masked.
        ImageSizeError: The model does not take images of that size, or its cells do not tile them.
    """
    found = []
    grid = 1, 1

    def run(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        units = VisibleUnits(torch.ones(len(images), *grid, dtype=torch.bool, device=images.device))
        image_map = VisibleMap(images, units.cells(*img_size), units)
        try:
            found[:] = masked_scales(replica, image_map, num_scales)
        except (AttributeError, IndexError, TypeError) as error:  # it wants a tensor, and nothing else
            raise MIMUnsupportedError(f'there is no rule for one of its operations ({first_line(error)})') from error
        return sum(x.data.sum() for x in found)

    _, unused = run_on_meta(backbone, in_chans, img_size, run, 'cannot be masked')
    grid = tuple(found[0].shape[-2:])
    stride = tuple(_stride(size, cells) for size, cells in zip(img_size, grid))
    check_divides(backbone, img_size, grid, stride)
    if any(height % grid[0] or width % grid[1] for height, width in found[0].units.sizes):
        run_on_meta(backbone, in_chans, img_size, run, 'cannot be masked')  # raises where it matters
    return Scales([x.shape[1] for x in found], stride, unused)


def _stride(size: int, cells: int) -> int:
    return size // cells if size % cells == 0 else 2 ** math.ceil(math.log2(size / cells))


def _norm_like(backbone: nn.Module, width: int, dd: Dict[str, Any]) -> nn.Module:
    """Batch norm for a model that has one, layer norm for others, as in the reference."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        return nn.BatchNorm2d(width, **dd)
    return LayerNorm2d(width, eps=1e-6, **dd)
