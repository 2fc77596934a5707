""" SimMIM

Replaces random units of patch tokens by a mask token before positions are added, encodes all tokens, and predicts the
pixels of the masked patches with one linear layer.

Paper: `SimMIM: A Simple Framework for Masked Image Modeling`
    - https://arxiv.org/abs/2111.09886

The formulas are those of microsoft/SimMIM, `models/simmim.py` (model and loss) and `data/data_simmim.py` (masks).

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w, D width of a patch token.
"""
from typing import Any, Optional, Set, Tuple

import torch
import torch.nn as nn

from timm.layers import trunc_normal_

from .backbone import (
    dry_run,
    model_input,
    model_name,
    patch_stride,
    refuse_patch_drop,
    remove_unused,
    to_pair,
    unsupported_reason,
)
from .decoder import PixelDecoder
from .factory import register_mim
from .masking import masked_count, random_mask, unit_grid, upsample_mask
from .output import MIMOutput, MIMUnsupportedError
from .targets import masked_l1_loss, pixel_target

__all__ = ['SimMIM']


@register_mim('simmim')
class SimMIM(nn.Module):
    """ SimMIM on any model with the embed / stages protocol and a feature map, plain or hierarchical.

    The model stays a plain timm model and is changed in two ways. Its classifier is removed, so that its `state_dict`
    is that of `timm.create_model(name, num_classes=0)`. Parameters that serve only the classifier but are left in such
    a model (`fc_norm` of average pooling, `attn_pool`) stay in the `state_dict` with the values that they have, and do
    not require a gradient: every parameter that does gets one in each step, as DistributedDataParallel expects.
    """
    unsupported_reason = staticmethod(unsupported_reason)

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.6,
            mask_unit: Any = 32,
    ) -> None:
        """
        Args:
            backbone: Model to train.
            img_size: Image size, one number or (height, width), that of the model if None.
            mask_ratio: Share of mask units that is masked, rounded up to whole units.
            mask_unit: Size of a mask unit in pixels, one number or (height, width).

        Raises:
            MIMUnsupportedError: The model has no protocol or no feature map, or drops patches by itself.
            ValueError: A value that is not allowed, or an image size that the model does not take.
        """
        super().__init__()
        reason = self.unsupported_reason(backbone)
        if reason:
            raise MIMUnsupportedError(
                f'SimMIM cannot serve {model_name(backbone)}: {reason}; list_mim_models(\'simmim\') names the models '
                f'that work, vit_base_patch16_224 or swin_base_patch4_window7_224 for example.')
        refuse_patch_drop(backbone)
        self.in_chans, model_size = model_input(backbone)
        self.img_size = model_size if img_size is None else to_pair(img_size, 'img_size')
        self.mask_ratio = mask_ratio
        self.mask_unit = to_pair(mask_unit, 'mask_unit')
        self.patch_stride = patch_stride(backbone, self.img_size)
        masked_count(self._num_units(self.img_size), mask_ratio)

        features = dry_run(backbone, self.in_chans, self.img_size)
        self.encoder_stride = features.stride
        self._known_sizes = {self.img_size}  # image sizes that the model is known to take
        remove_unused(backbone, features.unused)

        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.patch_dim, **dd))
        self.decoder = PixelDecoder(features.channels, self.encoder_stride, out_chans=self.in_chans, **dd)
        trunc_normal_(self.mask_token, std=.02)

    def forward(
            self,
            images: torch.Tensor,
            mask: Optional[torch.Tensor] = None,
            noise: Optional[torch.Tensor] = None,
            generator: Optional[torch.Generator] = None,
    ) -> MIMOutput:
        """ Mask images, predict their pixels, compare where they were masked.

        Without a mask one is made of noise, without noise that is drawn from the generator.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked. Any number per sample.
            noise: Noise as `noise_shape` says, the units of smallest noise are masked.
            generator: Generator on the device of the images, the default one if None.

        Raises:
            ValueError: An argument of wrong shape or type, or an image size that the model does not take.
        """
        img_size = self._check_images(images)
        if mask is None:
            mask = self._sample_mask(images, noise, generator)
        elif noise is None and generator is None:
            mask = self._check_mask(mask, images)
        else:
            raise ValueError('Give a mask, or the noise or generator to make one, not both.')
        prediction = self._predict(images, mask, img_size)
        target = pixel_target(images)
        loss = masked_l1_loss(prediction, target, self.pixel_mask(mask))
        return MIMOutput(loss, prediction, target, mask)

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ Predict all pixels of images from their visible patches.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked.

        Returns:
            Pixels of shape (B, C, H, W) float32, normalised as the images are.
        """
        img_size = self._check_images(images)
        return self._predict(images, self._check_mask(mask, images), img_size)

    def noise_shape(self, batch_size: int, img_size: Optional[Any] = None) -> Tuple[int, int]:
        """ Shape (B, number of mask units) of the noise that makes the masks of a batch.
        """
        return batch_size, self._num_units(self.img_size if img_size is None else to_pair(img_size, 'img_size'))

    def pixel_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """ The pixels (B, 1, H, W) bool under a mask (B, h, w) of patches.
        """
        return upsample_mask(mask, self.patch_stride).unsqueeze(1)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, 'no_weight_decay') else ()
        return {f'backbone.{name}' for name in names}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model."""
        self.backbone.set_grad_checkpointing(enable)

    def _predict(self, images: torch.Tensor, mask: torch.Tensor, img_size: Tuple[int, int]) -> torch.Tensor:
        masked = mask.flatten(1).unsqueeze(-1)  # (B, N, 1)

        def insert_mask_token(tokens: torch.Tensor) -> torch.Tensor:  # (B, N, D)
            return torch.where(masked, self.mask_token.to(tokens.dtype), tokens)

        patches = self.backbone.map_tokens(self.backbone.embed_patches(images), insert_mask_token)
        features = self.backbone.forward_stages(self.backbone.embed_positions(patches))
        feature_map = self.backbone.features_to_map(features, self._patch_grid(img_size))
        return self.decoder(feature_map).float()

    def _sample_mask(
            self,
            images: torch.Tensor,
            noise: Optional[torch.Tensor],
            generator: Optional[torch.Generator],
    ) -> torch.Tensor:
        img_size = images.shape[-2:]
        batch_size, num_units = shape = self.noise_shape(images.shape[0], tuple(img_size))
        if noise is None:
            noise = torch.rand(shape, generator=generator, device=images.device)
        elif noise.shape != shape or noise.device != images.device:
            raise ValueError(
                f'noise must have shape {shape} on {images.device}, got {tuple(noise.shape)} on {noise.device}.')
        mask = random_mask(noise, masked_count(num_units, self.mask_ratio))
        mask = mask.reshape(batch_size, *unit_grid(img_size, self.mask_unit, self.patch_stride))
        return upsample_mask(mask, tuple(unit // stride for unit, stride in zip(self.mask_unit, self.patch_stride)))

    def _patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        return img_size[0] // self.patch_stride[0], img_size[1] // self.patch_stride[1]

    def _num_units(self, img_size: Tuple[int, int]) -> int:
        rows, columns = unit_grid(img_size, self.mask_unit, self.patch_stride)
        return rows * columns

    def _check_mask(self, mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """ Check a caller's mask, give it the shape (B, h, w).
        """
        shape = (images.shape[0], *self._patch_grid(images.shape[-2:]))
        if mask.dtype != torch.bool or mask.shape not in (shape, (shape[0], shape[1] * shape[2])):
            raise ValueError(
                f'mask must be bool of shape {shape} or ({shape[0]}, {shape[1] * shape[2]}), got {mask.dtype} of shape '
                f'{tuple(mask.shape)}.')
        if mask.device != images.device:
            raise ValueError(f'mask must be on {images.device} as the images are, it is on {mask.device}.')
        return mask.reshape(shape)

    def _check_images(self, images: torch.Tensor) -> Tuple[int, int]:
        """ Check images, return their size (height, width).
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans or not images.is_floating_point():
            raise ValueError(
                f'images must be normalised floats of shape (B, {self.in_chans}, H, W), got {images.dtype} of shape '
                f'{tuple(images.shape)}.')
        img_size = images.shape[-2], images.shape[-1]
        if img_size not in self._known_sizes and not torch.compiler.is_compiling():
            self._check_size(img_size)
        return img_size

    def _check_size(self, img_size: Tuple[int, int]) -> None:
        """ Check that the model takes images of another size than the one it was built for.
        """
        patch_stride(self.backbone, img_size)
        stride = dry_run(self.backbone, self.in_chans, img_size).stride
        if stride != self.encoder_stride:
            raise ValueError(
                f'{model_name(self.backbone)} has stride {stride} for images of {img_size[0]} x {img_size[1]} pixels, '
                f'the decoder was built for {self.encoder_stride}.')
        self._known_sizes.add(img_size)
