"""SimMIM

Replaces random units of patch tokens by a mask token before positions are added, encodes all tokens, and predicts the
pixels of the masked patches, or another target, with one linear layer.

Paper: `SimMIM: A Simple Framework for Masked Image Modeling`
    - https://arxiv.org/abs/2111.09886

The formulas are those of microsoft/SimMIM, `models/simmim.py` (model and loss) and `data/data_simmim.py` (masks).

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w, D width of a patch token.
"""
import math
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import trunc_normal_

from .backbone import encode_with_mask_token, insert_mask_token, model_name, patch_stride, remove_unused, to_pair
from .decoder import PixelDecoder
from .extraction import attention_maps, masked_intermediates
from .factory import register_mim
from .fast_path import embeds_patches, encode_masked, select_patches
from .masking import (
    block_mask,
    block_noise_size,
    default_mask_unit,
    masked_count,
    random_mask,
    split_mask,
    unit_grid,
    upsample_mask,
)
from .meta_run import dry_run
from .method import MIMMethod
from .output import MIMOutput
from .targets import masked_loss, patchify
from .teacher import Target, TeacherTarget, create_target, target_shape

__all__ = ['SimMIM']

_DISTANCES = dict(l1=F.l1_loss, l2=F.mse_loss, smooth_l1=F.smooth_l1_loss)


class SimMIMMask(NamedTuple):
    """Mask of a batch of images.

    Attributes:
        patches: Masked patches of shape (B, h, w) bool, True is masked.
        visible: Indices of the visible cells of the feature map of shape (B, K), None where all cells are predicted.
        masked: Indices of the masked cells of shape (B, M), None likewise.
    """
    patches: torch.Tensor
    visible: Optional[torch.Tensor] = None
    masked: Optional[torch.Tensor] = None


@register_mim('simmim')
class SimMIM(MIMMethod):
    """SimMIM on any model with the embed / stages protocol and a feature map, plain or hierarchical.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with any number of masked patches per sample.
    Prediction and target are pixels of shape (B, C, H, W), or have the shape of another target; with `fast_path` see
    `predict`.

    Masked pixels are set to 0 before the model sees an image. In a model whose patches do not overlap (ViT, Swin) this
    changes nothing, since the mask token takes the place of masked patches.

    Set `fast_path` where the loss is all that is wanted, as pre-training does: visible pixels are then not predicted.
    """
    fast_path = False
    takes_any_size = True
    works = (
        'list_mim_models(\'simmim\') names the models that work, vit_base_patch16_224 or '
        'swin_base_patch4_window7_224 for example')

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.6,
            mask_unit: Optional[Any] = None,
            masking: str = 'random',
            target: Union[str, Target] = 'pixels',
            loss: str = 'l1',
    ) -> None:
        """
        Args:
            backbone: Model to train.
            img_size: Image size, one number or (height, width), that of the model if None.
            mask_ratio: Share of mask units that is masked, rounded up to whole units.
            mask_unit: Size of a mask unit in pixels, one number or (height, width). If None 32, as in the paper, or
                where that does not fit the size nearest to it that does, see `default_mask_unit`.
            masking: Mask units at 'random', or in larger blocks as BEiT does ('block').
            target: What to predict: 'pixels', 'normalized_pixels' (each cell of the feature map by its own mean and
                variance), 'hog', the name of a model whose pretrained features to predict, or a function of images, see
                `timm.mim.targets` and `TeacherTarget`.
            loss: Distance of prediction and target, 'l1', 'l2' or 'smooth_l1'.

        Raises:
            MIMUnsupportedError: The model has no protocol or no feature map, or drops patches by itself.
            ValueError: A value that is not allowed, or an image size that the model does not take.
        """
        super().__init__(backbone, img_size)
        self.mask_ratio = mask_ratio
        self.masking = self._check_masking(masking)
        if loss not in _DISTANCES:
            raise ValueError(f"loss must be 'l1', 'l2' or 'smooth_l1', got {loss!r}.")
        self.distance = _DISTANCES[loss]

        features = dry_run(backbone, self.in_chans, self.img_size)
        self.encoder_stride = features.stride
        self.mask_unit = self._find_mask_unit(mask_unit)
        self._known_sizes = {self.img_size}  # image sizes that the model is known to take
        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        self.target = create_target(target, backbone, self.in_chans, self.img_size, self.encoder_stride)
        self.reconstructs_pixels = target == 'pixels'
        self._target_shape = self._find_target_shape(self.img_size)  # channels, cells of a feature
        remove_unused(backbone, features.unused)

        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.patch_dim, **dd))
        out_chans, cells = self._target_shape
        self.decoder = PixelDecoder(features.channels, cells, out_chans=out_chans, **dd)
        trunc_normal_(self.mask_token, std=.02)

    def predict(self, images: torch.Tensor, mask: 'SimMIMMask') -> torch.Tensor:
        """Predict the pixels of images, or another target.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Mask.

        Returns:
            Pixels of shape (B, C, H, W), or the prediction of another target in the shape of that target. If
            `fast_path` is set, the caller gave no mask, and a mask unit consists of whole cells of the feature map,
            only the M masked cells are predicted: the result has the shape (B, M, D), each cell flattened in the order
            (row, column, channel).
        """
        if mask.masked is None:
            return self.decoder(self._encode(images, mask.patches)).float()
        if embeds_patches(self.backbone):
            patches, grid = patchify(images, self.patch_stride), tuple(mask.patches.shape[1:])
            features = encode_masked(self.backbone, patches, self.mask_token, mask.visible, mask.masked, grid)
        else:
            features = select_patches(self._encode(images, mask.patches).flatten(2).transpose(1, 2), mask.masked)
        return self.decoder.forward_tokens(features).float()

    def make_target(self, images: torch.Tensor, mask: 'SimMIMMask') -> torch.Tensor:
        """Compute the target, in the shape of the prediction."""
        target = self.target(images)
        if mask.masked is None:
            return target
        return select_patches(patchify(target, self._target_shape[1]), mask.masked)

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: 'SimMIMMask') -> MIMOutput:
        """Compute the mean distance of prediction and target over what is masked, see `masked_loss`."""
        if mask.masked is None:
            loss = masked_loss(prediction, target, self.pixel_mask(mask.patches), self.distance)
        else:
            channels, cells = self._target_shape
            num_cells = mask.masked.numel() * math.prod(cells)  # the denominator is that of `masked_loss`
            loss = self.distance(prediction, target, reduction='none').sum() / (num_cells + 1e-5) / channels
        return MIMOutput(loss, prediction, target, mask.patches)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make the masked patches (B, h, w) bool of noise: the units of smallest noise are masked.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Image (height, width) in pixels, `self.img_size` if None.
        """
        grid = self._unit_grid(img_size or self.img_size)
        count = masked_count(math.prod(grid), self.mask_ratio)
        mask = block_mask(noise, grid, count) if self.masking == 'block' else random_mask(noise, count)
        mask = mask.reshape(len(noise), *grid)
        return upsample_mask(mask, tuple(unit // stride for unit, stride in zip(self.mask_unit, self.patch_stride)))

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> 'SimMIMMask':
        """Make a mask of noise. It masks as many cells in each sample, so that `fast_path` may predict those alone."""
        mask = self.make_mask(noise, img_size)
        if not self.fast_path or any(unit % stride for unit, stride in zip(self.mask_unit, self.encoder_stride)):
            return SimMIMMask(mask)
        rows, columns = (cell // patch for cell, patch in zip(self.encoder_stride, self.patch_stride))
        cells = mask[:, ::rows, ::columns].flatten(1)  # all patches of a cell are masked, or none
        units = math.prod(self._unit_grid(img_size))
        num_visible = cells.shape[1] // units * (units - masked_count(units, self.mask_ratio))
        return SimMIMMask(mask, *split_mask(cells, num_visible))

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> 'SimMIMMask':
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w). Any number of patches per sample is masked."""
        return SimMIMMask(self._check_mask(mask, images))

    def hidden_patches(self, mask: 'SimMIMMask') -> torch.Tensor:
        """Patches (B, h, w) bool whose pixels the model must not see."""
        return mask.patches

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all pixels of images, or what else the target is, from their visible patches.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Pixels of shape (B, C, H, W) float32, normalised as the images are; another target in its own shape.
        """
        images, mask = self._mask_images(images, mask)
        return self.predict(images, mask)

    def forward_intermediates(self, images: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        """Hidden states of the model for masked images, as its own `forward_intermediates` returns them.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.
            **options: Options of the model's `forward_intermediates`, such as `indices` or `return_prefix_tokens`.

        Raises:
            MIMUnsupportedError: The model has no intermediates, or patch tokens that cannot be replaced on the way.
        """
        images, mask = self._mask_images(images, mask)
        return masked_intermediates(
            self.backbone, images, insert_mask_token(mask.patches, self.mask_token), **options)

    def attention_maps(self, images: torch.Tensor, mask: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attention maps of the model for masked images, by the names of its modules, in eval mode.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Maps after the softmax, of shape (B, heads, queries, keys); prefix tokens are in front. Windowed models have
            their windows in the batch.

        Raises:
            MIMUnsupportedError: The model has no attention maps, or patch tokens that cannot be replaced on the way.
        """
        images, mask = self._mask_images(images, mask)
        return attention_maps(self.backbone, images, insert_mask_token(mask.patches, self.mask_token))

    def noise_shape(self, batch_size: int, img_size: Optional[Any] = None) -> Tuple[int, int]:
        """Shape (B, number of mask units, and more for blocks) of the noise that makes the masks of a batch."""
        grid = self._unit_grid(self.img_size if img_size is None else to_pair(img_size, 'img_size'))
        return batch_size, block_noise_size(grid) if self.masking == 'block' else math.prod(grid)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """The loss of predicting the mean of a target other than pixels, see `MIMMethod.uninformed_losses`."""
        if self.reconstructs_pixels:
            return {}
        is_masked_alone, target = output.target.ndim == 3, output.target
        if is_masked_alone:
            target = target.unflatten(2, (-1, self._target_shape[0])).movedim(3, 1)  # (B, channels, M, cells)
        constant = target.mean(dim=(0, 2, 3), keepdim=True).expand_as(target)
        if is_masked_alone:
            return dict(loss_of_constant=self.distance(constant, target))
        return dict(loss_of_constant=masked_loss(constant, target, self.pixel_mask(output.mask), self.distance))

    def set_image_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say what images are normalised with, which a teacher has to know. As the model says if it is not said."""
        if isinstance(self.target, TeacherTarget):
            self.target.set_image_statistics(mean, std)

    def _mask_images(self, images: torch.Tensor, mask: torch.Tensor) -> Tuple[torch.Tensor, 'SimMIMMask']:
        """Check images and a caller's mask, return the images with masked pixels set to 0, and the mask."""
        self._check_images(images)
        mask = self.given_mask(mask, images)
        return self.blank(images, mask), mask

    def _encode(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return encode_with_mask_token(self.backbone, images, mask, self.mask_token)

    def _find_mask_unit(self, mask_unit: Optional[Any]) -> Tuple[int, int]:
        """Check the size of a mask unit that was asked for, or find one."""
        if mask_unit is None:
            return default_mask_unit(self.img_size, self.patch_stride, self.encoder_stride, self.mask_ratio)
        mask_unit = to_pair(mask_unit, 'mask_unit')
        masked_count(math.prod(unit_grid(self.img_size, mask_unit, self.patch_stride)), self.mask_ratio)
        return mask_unit

    def _find_target_shape(self, img_size: Tuple[int, int]) -> Tuple[int, Tuple[int, int]]:
        device = next(self.backbone.parameters()).device
        return target_shape(self.target, self.in_chans, img_size, device, self.encoder_stride)

    def _unit_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        return unit_grid(img_size, self.mask_unit, self.patch_stride)

    def _check_images(self, images: torch.Tensor) -> Tuple[int, int]:
        """Check images, return their size (height, width), one that the model takes."""
        img_size = super()._check_images(images)
        if img_size not in self._known_sizes and not torch.compiler.is_compiling():
            self._check_size(img_size)
        return img_size

    def _check_size(self, img_size: Tuple[int, int]) -> None:
        """Check that the model takes images of another size than the one it was built for."""
        patch_stride(self.backbone, img_size)
        stride = dry_run(self.backbone, self.in_chans, img_size).stride
        if stride != self.encoder_stride:
            raise ValueError(
                f'{model_name(self.backbone)} has stride {stride} for images of {img_size[0]} x {img_size[1]} pixels, '
                f'the decoder was built for {self.encoder_stride}.')
        if self._find_target_shape(img_size) != self._target_shape:
            raise ValueError(
                f'The target has other cells in images of {img_size[0]} x {img_size[1]} pixels than in those of '
                f'{self.img_size[0]} x {self.img_size[1]} that the decoder was built for.')
        self._known_sizes.add(img_size)
