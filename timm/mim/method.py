"""What Masked Image Modeling Methods Have in Common

A method predicts what it cannot see. That is decided here for all methods: `MIMMethod.forward` sets masked pixels to 0
before a method's `predict` gets the images.

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w.
"""
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Type, Union

import torch
import torch.nn as nn

from .backbone import model_input, model_name, patch_stride, refuse_patch_drop, to_pair, unsupported_reason
from .errors import MIMUnsupportedError
from .masking import upsample_mask
from .output import MIMOutput, View

__all__ = ['MIMMethod']


class MIMMethod(nn.Module):
    """Base of the methods: a model as `backbone`, images that it takes, masks over the grid of its patches.

    The model stays a plain timm model and is changed in two ways. Its classifier is removed, so that its `state_dict`
    is that of `timm.create_model(name, num_classes=0)`. Parameters that serve only the classifier but are left in such
    a model (`fc_norm` of average pooling, `attn_pool`) stay in the `state_dict` with the values that they have, and do
    not require a gradient: every parameter that does gets one in each step, as DistributedDataParallel expects.

    A subclass states what it needs of a model in `protocol`, makes its own modules once its options were checked, and
    implements `noise_shape`, `make_mask`, `predict`, `make_target` and `compare`. `forward` calls them. The images that
    `predict` gets have 0 in the place of masked pixels. Dropping or replacing tokens would not be enough: where a stem
    overlaps or is deep, the tokens of visible patches hold pixels of masked neighbours.

    Attributes:
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        patch_stride: Size (height, width) in pixels of what a mask decides on, a patch.
        reconstructs_pixels: `reconstruct` gives pixels that compare with those of the images.
        losses_compare: A lower held-out loss is a better model. It is not where targets change with the model.
        fast_path: Take the shortcuts of `timm.mim.lean`, which leave the loss as it is.
        takes_any_size: Images may have another size than `img_size`, if the model takes it.
    """
    protocol = ('map_tokens', 'features_to_map', 'patch_grid')  # methods that a model must not refuse
    mask_grid = 'patch_grid'  # method of a model that tells the grid of what a mask decides on
    works = 'timm.mim.list_mim_models names the models that work'
    reconstructs_pixels = True
    losses_compare = True
    fast_path = True
    takes_any_size = False

    @classmethod
    def unsupported_reason(cls, model: Union[nn.Module, Type[nn.Module]]) -> Optional[str]:
        """Why the method cannot serve a model, or model class, None if it can."""
        return unsupported_reason(model, cls.protocol)

    def __init__(self, backbone: nn.Module, img_size: Optional[Any] = None) -> None:
        super().__init__()
        reason = self.unsupported_reason(backbone)
        if reason:
            raise MIMUnsupportedError(
                f'{type(self).__name__} cannot serve {model_name(backbone)}: {reason}; {self.works}.')
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
        """Mask images, predict what is masked without seeing it, and compare the prediction with the target.

        Without a mask, one is made of noise. Without noise, noise is drawn from the generator.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Mask, in the form that the method takes: see its `given_mask`.
            noise: Noise to make a mask of, of the shape that `noise_shape` returns.
            generator: Generator to draw noise with, on the device of the images. The default generator if None.

        Returns:
            The result. The class of the method says what its prediction and target are.

        Raises:
            ValueError: An argument of wrong shape or type, or images of a size that the method does not take.
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
        """Shape (B, values per sample) of the uniform noise in [0, 1) that the masks of a batch are made of."""
        raise NotImplementedError

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> Any:
        """Make the mask of a batch of noise, as `forward` does.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Image (height, width) in pixels, `self.img_size` if None.

        Returns:
            Masked patches of shape (B, h, w) bool, True is masked. I-JEPA returns `MultiBlockMasks`.
        """
        raise NotImplementedError

    def predict(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Predict what is masked.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: What `drawn_mask` or `given_mask` returned.
        """
        raise NotImplementedError

    def make_target(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Compute what the prediction is compared with.

        Args:
            images: Images of shape (B, C, H, W), nothing of which is hidden.
            mask: What `drawn_mask` or `given_mask` returned.
        """
        raise NotImplementedError

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: Any) -> MIMOutput:
        """Compute the loss of a prediction.

        Args:
            prediction: What `predict` returned.
            target: What `make_target` returned.
            mask: What `drawn_mask` or `given_mask` returned.
        """
        raise NotImplementedError

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> Any:
        """Mask that `predict`, `make_target` and `compare` get where the caller of `forward` brings none.

        A subclass that needs more than the mask itself overrides this method, `given_mask` and `hidden_patches`.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Image (height, width) in pixels.
        """
        return self.make_mask(noise, img_size)

    def given_mask(self, mask: Any, images: torch.Tensor) -> Any:
        """Mask that `predict`, `make_target` and `compare` get where the caller of `forward` brings one.

        Args:
            mask: Masked patches of shape (B, h, w) or (B, h * w) bool, True is masked.
            images: Images of shape (B, C, H, W).

        Raises:
            ValueError: A mask of wrong shape, type or device.
        """
        return self._check_mask(mask, images)

    def hidden_patches(self, mask: Any) -> torch.Tensor:
        """Patches (B, h, w) bool whose pixels the model must not see.

        Args:
            mask: What `drawn_mask` or `given_mask` returned.
        """
        return mask

    def blank(self, images: torch.Tensor, mask: Any) -> torch.Tensor:
        """Set masked pixels to 0, the mean of normalised images.

        What was there leaves no trace, not even if it was infinite or NaN.

        Args:
            images: Images of shape (B, C, H, W).
            mask: What `drawn_mask` or `given_mask` returned.
        """
        return images.masked_fill(self.pixel_mask(self.hidden_patches(mask)), 0.)

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict whole images from what is visible, for methods that can.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches of shape (B, h, w) or (B, h * w) bool, True is masked.
        """
        raise NotImplementedError(f'{type(self).__name__} has no prediction of whole images.')

    @property
    def encoder(self) -> nn.Module:
        """The model to use after pre-training."""
        return self.backbone

    def apply_to_encoder(self, function: Callable, *args: Any) -> Any:
        """Call a function with the encoder; where weights are sharded over processes, they are gathered for it.

        Args:
            function: Function of the encoder, and of what follows.
            *args: What follows.
        """
        return function(self.encoder, *args)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """The loss of predictions that know nothing of the image, by name, to compare that of the method with."""
        return {}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """What there is to see of a step: columns of a picture.

        The prediction at visible places, which was never trained, is not shown.

        Args:
            images: Normalised images of shape (B, C, H, W).
            noise: Noise to make masks of, as `noise_shape` says.
        """
        mask = self.make_mask(noise, (images.shape[-2], images.shape[-1]))
        hole = self.pixel_mask(mask)
        views = [View('original', images), View('masked input', images, hole)]
        if self.reconstructs_pixels:
            pixels = self.reconstruct(images, mask).to(images.dtype)
            views.append(View('visible + prediction', torch.where(hole, pixels, images)))
        return views

    def pixel_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The pixels (B, 1, H, W) bool under a mask (B, h, w) of patches."""
        return upsample_mask(mask, self.patch_stride).unsqueeze(1)

    @staticmethod
    def get_noise(
            shape: Tuple[int, int],
            images: torch.Tensor,
            noise: Optional[torch.Tensor],
            generator: Optional[torch.Generator],
    ) -> torch.Tensor:
        """Draw noise where none is given, check it where some is.

        Args:
            shape: What `noise_shape` says.
            images: Images that the masks are for.
            noise: Noise that the caller of `forward` gave.
            generator: Generator that the caller of `forward` gave.

        Raises:
            ValueError: The noise has another shape, or is on another device than the images.
        """
        if noise is None:
            return torch.rand(shape, generator=generator, device=images.device)
        if noise.shape != shape or noise.device != images.device:
            raise ValueError(
                f'noise must have shape {shape} on {images.device}, got {tuple(noise.shape)} on {noise.device}.')
        return noise

    def set_image_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say what images are normalised with, for a method that has to know."""

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, 'no_weight_decay') else ()
        return {f'backbone.{name}' for name in names}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Groups of parameters for layer decay: those of the model, with what belongs to the method on top."""
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
        """Check type and size of images, return their size (height, width)."""
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
        """Check a caller's mask, give it the shape (B, h, w)."""
        shape = (images.shape[0], *self._patch_grid(images.shape[-2:]))
        if mask.dtype != torch.bool or mask.shape not in (shape, (shape[0], shape[1] * shape[2])):
            raise ValueError(
                f'mask must be bool of shape {shape} or ({shape[0]}, {shape[1] * shape[2]}), got {mask.dtype} of shape '
                f'{tuple(mask.shape)}.')
        if mask.device != images.device:
            raise ValueError(f'mask must be on {images.device} as the images are, it is on {mask.device}.')
        return mask.reshape(shape)

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
