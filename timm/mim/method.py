"""Base class of masked image modeling methods.

`MIMMethod.forward` sets masked pixels to 0 before it calls a method's `predict`, so that no method can see the pixels
that it has to predict.

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w.
"""
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Type, Union

import torch
import torch.nn as nn

from .backbone import (
    encode_visible,
    model_input,
    model_name,
    patch_stride,
    refuse_patch_drop,
    to_pair,
    unsupported_reason,
)
from .errors import MIMUnsupportedError
from .fast_path import embed_visible, embeds_patches
from .masking import upsample_mask
from .output import MIMOutput, View
from .targets import patchify

__all__ = ['MIMMethod']


class MIMMethod(nn.Module):
    """Base class of the methods: it holds a model as `backbone`, checks images and masks, and blanks masked pixels.

    The model stays a plain timm model, with two changes. Its classifier is removed, so that its `state_dict` is that of
    `timm.create_model(name, num_classes=0)`. Parameters that only the classifier used (`fc_norm` of average pooling,
    `attn_pool`) stay in the `state_dict` unchanged but are frozen: DistributedDataParallel expects every parameter that
    requires a gradient to get one in each step.

    A subclass lists the protocol methods that it needs in `protocol`, creates its own modules after it has checked its
    options, and implements `noise_shape`, `make_mask`, `predict`, `make_target` and `compare`, which `forward` calls.
    `predict` gets images whose masked pixels are 0. Dropping or replacing tokens would not suffice: if a stem overlaps
    or is deep, the tokens of visible patches contain pixels of masked neighbours.

    Args:
        backbone: Model to train. It is changed in place.
        img_size: Image size, one number or (height, width). The size of the model if None.

    Raises:
        MIMUnsupportedError: The model does not implement the methods in `protocol`, or has patch dropout.
        ValueError: The model does not accept the image size.

    Attributes:
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        patch_stride: Size (height, width) in pixels of the patches that a mask selects.
        reconstructs_pixels: `reconstruct` returns pixels that can be compared with those of the images.
        losses_compare: A lower held-out loss means a better model. False if the targets change with the model.
        fast_path: Use the faster computation of `timm.mim.fast_path`, which gives the same loss.
        takes_any_size: Accept images of other sizes than `img_size`, if the model does.
    """
    protocol = ('map_tokens', 'features_to_map', 'patch_grid')  # protocol methods that the model has to support
    mask_grid = 'patch_grid'  # protocol method that returns the grid of a mask
    works = 'timm.mim.list_mim_models lists the models that work'
    reconstructs_pixels = True
    losses_compare = True
    fast_path = True
    takes_any_size = False

    @classmethod
    def unsupported_reason(cls, model: Union[nn.Module, Type[nn.Module]]) -> Optional[str]:
        """Return why the method does not support a model or model class, or None if it does."""
        return unsupported_reason(model, cls.protocol)

    def __init__(self, backbone: nn.Module, img_size: Optional[Any] = None) -> None:
        super().__init__()
        reason = self.unsupported_reason(backbone)
        if reason:
            raise MIMUnsupportedError(
                f'{type(self).__name__} does not support {model_name(backbone)}: {reason}; {self.works}.')
        refuse_patch_drop(backbone)
        self.in_chans, model_size = model_input(backbone)
        self.img_size = model_size if img_size is None else to_pair(img_size, 'img_size')
        self.patch_stride = patch_stride(backbone, self.img_size, self.mask_grid)
        self.backbone = backbone

    def forward(
            self,
            images: torch.Tensor,
            mask: Optional[Any] = None,
            noise: Optional[torch.Tensor] = None,
            generator: Optional[torch.Generator] = None,
    ) -> MIMOutput:
        """Mask images, predict the target from the visible patches, and compute the loss.

        Give a mask, or noise to make one from, or a generator to draw the noise with, or none of them.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Mask in the form that the method's `given_mask` describes.
            noise: Noise to make a mask from, of the shape that `noise_shape` returns.
            generator: Generator to draw noise with, on the device of the images. The default generator if None.

        Returns:
            Loss, prediction, target and mask. The docstring of the method's class describes prediction and target.

        Raises:
            ValueError: An argument has the wrong shape or type, the method does not accept the image size, or a mask is
                given together with noise or a generator.
        """
        img_size = self._check_images(images)
        self._check_one_source(mask, noise, generator)
        if mask is None:
            shape = self.noise_shape(len(images), img_size) if self.takes_any_size else self.noise_shape(len(images))
            mask = self.drawn_mask(self.get_noise(shape, images, noise, generator), img_size)
        else:
            mask = self.given_mask(mask, images)
        prediction = self.predict(self.blank(images, mask), mask)
        return self.compare(prediction, self.make_target(images, mask), mask)

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape (B, values per sample) of the uniform noise in [0, 1) for the masks of a batch."""
        raise NotImplementedError

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> Any:
        """Make the masks of a batch from noise, as `forward` does.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Image (height, width) in pixels, `self.img_size` if None.

        Returns:
            Masked patches of shape (B, h, w) bool, True is masked. I-JEPA returns `MultiBlockMasks`.
        """
        raise NotImplementedError

    def predict(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Predict the target from images whose masked pixels are blank.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Result of `drawn_mask` or `given_mask`.
        """
        raise NotImplementedError

    def make_target(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Compute the target that the prediction is compared with.

        Args:
            images: Complete images of shape (B, C, H, W).
            mask: Result of `drawn_mask` or `given_mask`.
        """
        raise NotImplementedError

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: Any) -> MIMOutput:
        """Compute the loss of a prediction.

        Args:
            prediction: Result of `predict`.
            target: Result of `make_target`.
            mask: Result of `drawn_mask` or `given_mask`.
        """
        raise NotImplementedError

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> Any:
        """Make the mask for `predict`, `make_target` and `compare` when the caller of `forward` gives none.

        A subclass that needs more than the mask itself, such as indices, overrides this method, `given_mask` and
        `hidden_patches`.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Image (height, width) in pixels.
        """
        return self.make_mask(noise, img_size)

    def given_mask(self, mask: Any, images: torch.Tensor) -> Any:
        """Check the mask of a caller of `forward`, and return it in the form that `predict` and `compare` take.

        Args:
            mask: Masked patches of shape (B, h, w) or (B, h * w) bool, True is masked.
            images: Images of shape (B, C, H, W).

        Raises:
            ValueError: The mask has the wrong shape, dtype or device.
        """
        return self._check_mask(mask, images)

    def hidden_patches(self, mask: Any) -> torch.Tensor:
        """Return the patches (B, h, w) bool whose pixels the model must not see.

        Args:
            mask: Result of `drawn_mask` or `given_mask`.
        """
        return mask

    def blank(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Set masked pixels to 0, the mean of normalised images. This also removes infinite values and NaN.

        Args:
            images: Images of shape (B, C, H, W).
            mask: Result of `drawn_mask` or `given_mask`.
        """
        return images.masked_fill(self.pixel_mask(self.hidden_patches(mask)), 0.)

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict whole images from their visible patches.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches of shape (B, h, w) or (B, h * w) bool, True is masked.

        Raises:
            NotImplementedError: The method does not predict whole images.
        """
        raise NotImplementedError(f'{type(self).__name__} does not predict whole images.')

    @property
    def encoder(self) -> nn.Module:
        """The model to use after pre-training."""
        return self.backbone

    def apply_to_encoder(self, function: Callable, *args: Any) -> Any:
        """Call a function with the encoder. Weights that are sharded over processes are gathered for the call.

        Args:
            function: Function that takes the encoder and `args`.
            *args: Further arguments of the function.
        """
        return function(self.encoder, *args)

    def encode_visible(
            self,
            images: torch.Tensor,
            visible: torch.Tensor,
            grid_size: Tuple[int, int],
    ) -> torch.Tensor:
        """Encode the visible patches of images with the model, by a shorter way if `fast_path` is set and there is one.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            visible: Indices of the visible patches of shape (B, K).
            grid_size: Grid (h, w) of the patches.

        Returns:
            Prefix tokens and visible patches of shape (B, P + K, width of the encoder).
        """
        if self.fast_path and embeds_patches(self.backbone):
            patches = patchify(images, self.patch_stride)
            return self.backbone.forward_stages(embed_visible(self.backbone, patches, visible, grid_size))
        return encode_visible(self.backbone, images, visible)

    def own_optimizers(self) -> Dict[str, Dict[str, Any]]:
        """Return parameters that the trainer optimizes apart from the others: beginnings of names, and settings.

        Settings are options of a run, such as `opt`, `opt_betas`, `weight_decay`, `sched` or `warmup_epochs`, and
        `lr_scale`, the peak learning rate divided by that of the run. What is not set is as for the other parameters,
        but without layer-wise decay of the rate and without a change of the weight decay.
        """
        return {}

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return losses of predictions that ignore the image, by name, as a baseline for the method's loss."""
        return {}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of a step, the columns of a picture for `timm.mim.visualize.save_views`.

        Visible patches show the image, since the loss does not train the prediction there.

        Args:
            images: Normalised images of shape (B, C, H, W).
            noise: Noise to make masks from, of the shape that `noise_shape` returns.
        """
        mask = self.make_mask(noise, (images.shape[-2], images.shape[-1]))
        hole = self.pixel_mask(mask)
        views = [View('original', images), View('masked input', images, hole)]
        if self.reconstructs_pixels:
            pixels = self.reconstruct(images, mask).to(images.dtype)
            views.append(View('visible + prediction', torch.where(hole, pixels, images)))
        return views

    def pixel_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the pixels (B, 1, H, W) bool under a mask (B, h, w) of patches."""
        return upsample_mask(mask, self.patch_stride).unsqueeze(1)

    def naflex_refusal(self) -> Optional[str]:
        """Return why the method does not take NaFlex batches, None if it does, see `NaFlexMethod`."""
        return 'it works on images of one size; MAE and SimMIM take them'

    @staticmethod
    def get_noise(
            shape: Tuple[int, int],
            images: torch.Tensor,
            noise: Optional[torch.Tensor],
            generator: Optional[torch.Generator],
    ) -> torch.Tensor:
        """Check the given noise, or draw noise if None.

        Args:
            shape: Result of `noise_shape`.
            images: Images to mask; noise is drawn on their device.
            noise: Noise from the caller of `forward`.
            generator: Generator from the caller of `forward`.

        Raises:
            ValueError: The noise has the wrong shape, or is not on the device of the images.
        """
        if noise is None:
            return torch.rand(shape, generator=generator, device=images.device)
        if noise.shape != shape or noise.device != images.device:
            raise ValueError(
                f'noise must have shape {shape} on {images.device}, got {tuple(noise.shape)} on {noise.device}.')
        return noise

    def set_image_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation that images are normalised with. Only a teacher needs them."""

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, 'no_weight_decay') else ()
        return {f'backbone.{name}' for name in names}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Return the parameter groups for layer-wise learning rate decay: those of the model.

        The parameters of the method itself match none of these patterns, and thus go into the last group.
        """
        def below_backbone(pattern: str) -> str:
            return 'backbone\\.(?:' + re.sub(r'(^|[|(])\^', r'\1', pattern) + ')'

        def moved(spec: Any) -> Any:
            if isinstance(spec, (list, tuple)):
                return [(below_backbone(pattern), suffix) for pattern, suffix in spec]
            return None if spec is None else below_backbone(spec)
        matcher = self.backbone.group_matcher(coarse=coarse)
        return {name: moved(spec) for name, spec in matcher.items()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model."""
        self.backbone.set_grad_checkpointing(enable)

    def _patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        return img_size[0] // self.patch_stride[0], img_size[1] // self.patch_stride[1]

    def _check_images(self, images: torch.Tensor) -> Tuple[int, int]:
        """Check dtype and shape of images, and return their size (height, width)."""
        if isinstance(images, dict):
            raise MIMUnsupportedError(f'{type(self).__name__} does not take NaFlex batches: {self.naflex_refusal()}.')
        if images.ndim != 4 or images.shape[1] != self.in_chans or not images.is_floating_point():
            raise ValueError(
                f'images must be normalised floats of shape (B, {self.in_chans}, H, W), got {images.dtype} of shape '
                f'{tuple(images.shape)}.')
        img_size = images.shape[-2], images.shape[-1]
        if img_size != self.img_size and not self.takes_any_size:
            raise ValueError(
                f'{type(self).__name__} was built for images of {self.img_size[0]} x {self.img_size[1]} pixels '
                f'(img_size=), got {img_size[0]} x {img_size[1]}.')
        return img_size

    def _check_mask(self, mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Check a caller's mask, and return it in the shape (B, h, w)."""
        shape = (images.shape[0], *self._patch_grid(images.shape[-2:]))
        if mask.dtype != torch.bool or mask.shape not in (shape, (shape[0], shape[1] * shape[2])):
            raise ValueError(
                f'mask must be bool of shape {shape} or ({shape[0]}, {shape[1] * shape[2]}), got {mask.dtype} of shape '
                f'{tuple(mask.shape)}.')
        if mask.device != images.device:
            raise ValueError(f'mask must be on the device of the images, {images.device}, got {mask.device}.')
        return mask.reshape(shape)

    def _count_visible(self, mask: torch.Tensor) -> int:
        """Return the number of visible patches of a caller's mask; this waits for the device."""
        counts = (~mask).flatten(1).sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts or counts[0] == 0:
            raise ValueError(
                f'mask must leave the same number of patches visible in each sample, at least one, got '
                f'{", ".join(str(count) for count in sorted(set(counts)))}.')
        return counts[0]

    @staticmethod
    def _check_masking(masking: str) -> str:
        if masking not in ('random', 'block'):
            raise ValueError(f"masking must be 'random' or 'block', got {masking!r}.")
        return masking

    @staticmethod
    def _check_one_source(
            mask: Optional[Any],
            noise: Optional[torch.Tensor],
            generator: Optional[torch.Generator],
    ) -> None:
        if mask is not None and (noise is not None or generator is not None):
            raise ValueError('Give a mask, or the noise or generator to make one, not both.')
