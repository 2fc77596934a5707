"""SimMIM: replace masked patch tokens by a mask token, and predict the masked pixels with a linear layer.

A mask consists of random units of patches. The mask token replaces them before positions are added; the model encodes
all tokens. The target can also be another function of the image, such as the features of a teacher.

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
from .native_aspect import (
    NaFlexBatch,
    NaFlexMask,
    NaFlexMethod,
    attention_mask,
    smallest_units,
    split_naflex_mask,
)
from .output import MIMOutput
from .targets import full_precision, masked_loss, normalize_patches, patchify
from .teacher import Target, TeacherTarget, create_target, target_shape

__all__ = ['SimMIM']

_PAPER_UNIT = 32  # side of a mask unit in pixels
_DISTANCES = dict(l1=F.l1_loss, l2=F.mse_loss, smooth_l1=F.smooth_l1_loss)


class SimMIMMask(NamedTuple):
    """Mask of a batch of images.

    Attributes:
        patches: Masked patches of shape (B, h, w) bool, True is masked.
        visible: Indices of the visible cells of the feature map of shape (B, K). None if all cells are predicted.
        masked: Indices of the masked cells of shape (B, M). None if all cells are predicted.
    """
    patches: torch.Tensor
    visible: Optional[torch.Tensor] = None
    masked: Optional[torch.Tensor] = None


@register_mim('simmim')
class SimMIM(NaFlexMethod):
    """SimMIM on any model with the embed / stages protocol and a feature map, plain or hierarchical.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with any number of masked patches per sample.
    Prediction and target are pixels of shape (B, C, H, W), or have the shape of another target. With `fast_path` they
    may have another shape, see `predict`.

    Masked pixels are set to 0 before the model gets an image. This makes no difference for models whose patches do not
    overlap (ViT, Swin), since the mask token replaces masked patches.

    A NaFlexVit also takes NaFlex batches, see `NaFlexMethod`, for the targets 'pixels' and 'normalized_pixels'. Mask
    units then form a grid from the upper left corner of each image; units at its right and lower border may have fewer
    patches, and count like all others.

    Set `fast_path` if you need the loss only, as in pre-training: the method then does not predict visible pixels.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of mask units to mask, rounded up to whole units.
        mask_unit: Size of a mask unit in pixels, one number or (height, width). If None, 32 as in the paper, or the
            nearest size that fits the image, see `default_mask_unit`.
        masking: 'random' masks single units, 'block' masks larger rectangular blocks as BEiT does.
        target: Target: 'pixels', 'normalized_pixels' (each cell of the feature map normalised by its own mean and
            variance), 'hog', the name of a model whose pretrained features are the target, or a function of images,
            see `timm.mim.targets` and `TeacherTarget`.
        loss: Distance between prediction and target, 'l1', 'l2' or 'smooth_l1'.

    Raises:
        MIMUnsupportedError: The model does not implement the protocol, has no feature map, or has patch dropout.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    fast_path = False
    takes_any_size = True
    works = (
        'list_mim_models(\'simmim\') lists the models that work, vit_base_patch16_224 or '
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
        super().__init__(backbone, img_size)
        self.mask_ratio = mask_ratio
        self.masking = self._check_masking(masking)
        if loss not in _DISTANCES:
            raise ValueError(f"loss must be 'l1', 'l2' or 'smooth_l1', got {loss!r}.")
        self.distance = _DISTANCES[loss]

        features = dry_run(backbone, self.in_chans, self.img_size)
        self.encoder_stride = features.stride
        self.mask_unit = self._find_mask_unit(mask_unit)
        self.naflex_unit = _naflex_unit(mask_unit, self.patch_stride)
        self.target_name = target if isinstance(target, str) else type(target).__name__
        self._known_sizes = {self.img_size}  # image sizes that the model is known to accept
        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        self.target = create_target(target, backbone, self.in_chans, self.img_size, self.encoder_stride)
        self.reconstructs_pixels = target == 'pixels'
        self._target_shape = self._find_target_shape(self.img_size)  # channels, target cells (down, across) per feature
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
            Pixels of shape (B, C, H, W), or the prediction of another target in its shape. If `fast_path` is set, the
            caller of `forward` gave no mask, and mask units consist of whole cells of the feature map, only the M
            masked cells are predicted: the result has the shape (B, M, D), each cell flattened in the order (row,
            column, channel).
        """
        if mask.masked is None:
            return full_precision(self.decoder(self._encode(images, mask.patches)))
        if embeds_patches(self.backbone):
            patches, grid = patchify(images, self.patch_stride), tuple(mask.patches.shape[1:])
            features = encode_masked(self.backbone, patches, self.mask_token, mask.visible, mask.masked, grid)
        else:
            features = select_patches(self._encode(images, mask.patches).flatten(2).transpose(1, 2), mask.masked)
        return full_precision(self.decoder.forward_tokens(features))

    def make_target(self, images: torch.Tensor, mask: 'SimMIMMask') -> torch.Tensor:
        """Compute the target, in the shape of the prediction."""
        target = self.target(images)
        if mask.masked is None:
            return target
        return select_patches(patchify(target, self._target_shape[1]), mask.masked)

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: 'SimMIMMask') -> MIMOutput:
        """Compute the mean distance between prediction and target over masked pixels or cells, see `masked_loss`."""
        if mask.masked is None:
            loss = masked_loss(prediction, target, self.pixel_mask(mask.patches), self.distance)
        else:
            channels, cells = self._target_shape
            num_cells = mask.masked.numel() * math.prod(cells)  # same denominator as in `masked_loss`
            loss = self.distance(prediction, target, reduction='none').sum() / (num_cells + 1e-5) / channels
        return MIMOutput(loss, prediction, target, mask.patches)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make a mask (B, h, w) bool from noise. If masking is 'random', units with the smallest noise are masked.

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
        """Make a mask from noise, with the indices of its cells if `fast_path` can predict masked cells only.

        Every sample has the same number of masked cells.
        """
        mask = self.make_mask(noise, img_size)
        if not self.fast_path or any(unit % stride for unit, stride in zip(self.mask_unit, self.encoder_stride)):
            return SimMIMMask(mask)
        rows, columns = (cell // patch for cell, patch in zip(self.encoder_stride, self.patch_stride))
        cells = mask[:, ::rows, ::columns].flatten(1)  # the patches of a cell are all masked or all visible
        units = math.prod(self._unit_grid(img_size))
        num_visible = cells.shape[1] // units * (units - masked_count(units, self.mask_ratio))
        return SimMIMMask(mask, *split_mask(cells, num_visible))

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> 'SimMIMMask':
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w), with any number of masked patches per sample.
        """
        return SimMIMMask(self._check_mask(mask, images))

    def hidden_patches(self, mask: 'SimMIMMask') -> torch.Tensor:
        """Return the patches (B, h, w) bool whose pixels the model must not see."""
        return mask.patches

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all pixels of images, or another target, from their visible patches.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Pixels of shape (B, C, H, W) float32, normalised like the images; another target in its own shape.
        """
        images, mask = self._mask_images(images, mask)
        return self.predict(images, mask)

    def naflex_refusal(self) -> Optional[str]:
        """Return why the model or an option does not work with NaFlex batches, None if all do."""
        if self.target_name not in ('pixels', 'normalized_pixels'):
            return f"target '{self.target_name}' needs images of one size: use 'pixels' or 'normalized_pixels'"
        reason = super().naflex_refusal()
        if reason is None and self.naflex_unit is None:
            reason = f'mask_unit is not a multiple of the patch size {self.patch_stride[0]} x {self.patch_stride[1]}'
        return reason

    def make_naflex_mask(self, noise: torch.Tensor, batch: NaFlexBatch) -> torch.Tensor:
        """Make the masks (B, N) bool of a NaFlex batch. The mask units with the smallest noise are masked."""
        batch = self.read_naflex(batch) if isinstance(batch, dict) else batch
        return smallest_units(noise, batch, self.naflex_unit, self.mask_ratio, of_masked=True)

    def drawn_naflex_mask(self, noise: torch.Tensor, batch: NaFlexBatch) -> NaFlexMask:
        """Make the mask for `predict_naflex` from noise (B, N)."""
        # the indices are not used: all patches are encoded and predicted
        return split_naflex_mask(self.make_naflex_mask(noise, batch), batch.valid, 0, 0)

    def predict_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict all patches (B, N, D) from the visible ones."""
        patches = self.backbone.embed_patches(batch.patches, patch_coord=batch.coord)
        patches = self.backbone.map_tokens(patches, insert_mask_token(mask.patches, self.mask_token))
        num_prefix_tokens = self.backbone.num_prefix_tokens
        keys = attention_mask(batch.valid, num_prefix_tokens, patches.tokens.dtype)
        embedded = self.backbone.embed_positions(patches._replace(attn_mask=keys))
        features = self.backbone.forward_stages(embedded)['patches'][:, num_prefix_tokens:]
        return full_precision(self.decoder.forward_tokens(features))

    def naflex_target(self, batch: NaFlexBatch, mask: NaFlexMask) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return all patches (B, N, D), and those (B, N) that are masked."""
        target = full_precision(batch.patches)
        return normalize_patches(target) if self.target_name == 'normalized_pixels' else target, mask.patches

    def compare_patches(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of each patch (B, N)."""
        return self.distance(prediction, target, reduction='none').mean(dim=-1)

    def reconstruct_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict all patches (B, N, D) from the visible ones."""
        return self.predict_naflex(batch, mask)

    def forward_intermediates(self, images: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        """Return hidden states of the model for masked images, in the form of the model's `forward_intermediates`.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.
            **options: Options of the model's `forward_intermediates`, such as `indices` or `return_prefix_tokens`.

        Raises:
            MIMUnsupportedError: The model has no `forward_intermediates`, or overrides `embed_patches`.
        """
        images, mask = self._mask_images(images, mask)
        return masked_intermediates(
            self.backbone, images, insert_mask_token(mask.patches, self.mask_token), **options)

    def attention_maps(self, images: torch.Tensor, mask: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Return attention maps of the model for masked images, by module name. The model runs in eval mode.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Maps after the softmax, of shape (B, heads, queries, keys), with prefix tokens first. Models with window
            attention have a map per window, in the batch dimension.

        Raises:
            MIMUnsupportedError: The model has no attention maps, or overrides `embed_patches`.
        """
        images, mask = self._mask_images(images, mask)
        return attention_maps(self.backbone, images, insert_mask_token(mask.patches, self.mask_token))

    def noise_shape(self, batch_size: int, img_size: Optional[Any] = None) -> Tuple[int, int]:
        """Return the shape of the noise for the masks of a batch: (B, mask units), or more values with 'block'."""
        grid = self._unit_grid(self.img_size if img_size is None else to_pair(img_size, 'img_size'))
        return batch_size, block_noise_size(grid) if self.masking == 'block' else math.prod(grid)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of a constant prediction, the mean of each target channel; empty for the target 'pixels'."""
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
        """Set the mean and standard deviation that images are normalised with, by default those of the model's config.

        Only a teacher needs them.
        """
        if isinstance(self.target, TeacherTarget):
            self.target.set_image_statistics(mean, std)

    def _mask_images(self, images: torch.Tensor, mask: torch.Tensor) -> Tuple[torch.Tensor, 'SimMIMMask']:
        """Check images and a caller's mask, and return the images with masked pixels set to 0, and the mask."""
        self._check_images(images)
        mask = self.given_mask(mask, images)
        return self.blank(images, mask), mask

    def _encode(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return encode_with_mask_token(self.backbone, images, mask, self.mask_token)

    def _find_mask_unit(self, mask_unit: Optional[Any]) -> Tuple[int, int]:
        """Check the given size of a mask unit, or find one if None."""
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
        """Check images, and that the model accepts their size, and return the size (height, width)."""
        img_size = super()._check_images(images)
        if img_size not in self._known_sizes and not torch.compiler.is_compiling():
            self._check_size(img_size)
        return img_size

    def _check_size(self, img_size: Tuple[int, int]) -> None:
        """Check that model, decoder and target fit an image size other than `img_size`."""
        patch_stride(self.backbone, img_size)
        stride = dry_run(self.backbone, self.in_chans, img_size).stride
        if stride != self.encoder_stride:
            raise ValueError(
                f'{model_name(self.backbone)} has stride {stride} for images of {img_size[0]} x {img_size[1]} pixels, '
                f'the decoder was built for {self.encoder_stride}.')
        if self._find_target_shape(img_size) != self._target_shape:
            raise ValueError(
                f'The target has cells of another size for images of {img_size[0]} x {img_size[1]} pixels than for '
                f'those of {self.img_size[0]} x {self.img_size[1]} that the decoder was built for.')
        self._known_sizes.add(img_size)


def _naflex_unit(mask_unit: Optional[Any], patch_size: Tuple[int, int]) -> Optional[Tuple[int, int]]:
    """Return the mask unit of NaFlex batches in patches (down, across), None if it does not consist of whole patches.

    Without a unit, the side is the number of patches nearest to the 32 pixels of the paper, at least 1.
    """
    if mask_unit is None:
        return tuple(max(1, round(_PAPER_UNIT / side)) for side in patch_size)
    unit = to_pair(mask_unit, 'mask_unit')
    return None if any(side % patch for side, patch in zip(unit, patch_size)) else tuple(
        side // patch for side, patch in zip(unit, patch_size))
