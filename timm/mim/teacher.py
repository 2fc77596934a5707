"""Create targets by name, and teachers, which are models whose features are the target.

`TeacherTarget` is a trained model that stays fixed. `EMATeacherMethod` maintains an exponential moving average of the
trained model.
"""

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.data.loader import adapt_to_chs
from timm.models import create_model, is_model, resolve_model_input_args
from timm.models._registry import get_arch_name
from .backbone import feature_map, model_input, model_name, to_pair, unsupported_reason
from .errors import MIMUnsupportedError
from .meta_run import dry_run
from .method import MIMMethod
from .targets import full_precision, hog_target, normalized_pixel_target, pixel_target

__all__ = [
    'EMATeacherMethod', 'Target', 'TeacherTarget', 'create_target', 'normalize_features', 'target_shape', 'variety',
]

Target = Callable[[torch.Tensor], torch.Tensor]
_IMAGENET_MEAN_STD = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def normalize_features(features: torch.Tensor) -> torch.Tensor:
    """Normalise features (..., C) to mean 0 and variance 1 by a layer norm without weights, in float32."""
    return F.layer_norm(full_precision(features), features.shape[-1:])


class TeacherTarget(nn.Module):
    """Target that maps images (B, C, H, W) to the features (B, D, h, w) of a fixed teacher model.

    Each feature is normalised by a layer norm without weights, as in I-JEPA. The teacher stays in eval mode and gets no
    gradient. It moves to the method's device with the method, but is not part of the method's parameters or
    `state_dict`: checkpoints do not contain it, and a resumed run has to create it again.

    Args:
        teacher: Any model with the embed / stages protocol and a feature map. It is changed in place: its parameters no
            longer require a gradient.
        mean: Mean per channel that the images are normalised with. They are normalised again with the teacher's own
            mean and standard deviation.
        std: Standard deviation per channel that the images are normalised with.
        img_size: Image (height, width) in pixels, to which images are resized for the teacher; None to keep their size.
            For images of 224 pixels, a teacher with patches of 14 pixels and a student with patches of 16 need 196.

    Raises:
        MIMUnsupportedError: The teacher does not implement the protocol, or has no feature map.
    """

    def __init__(
            self,
            teacher: nn.Module,
            mean: Sequence[float],
            std: Sequence[float],
            img_size: Optional[Any] = None,
    ) -> None:
        super().__init__()
        reason = unsupported_reason(teacher, ('features_to_map',))
        if reason:
            raise MIMUnsupportedError(f'{model_name(teacher)} cannot be a teacher: {reason}.')
        # not registered as a submodule, whose parameters would be trained and saved
        self.__dict__['teacher'] = teacher.requires_grad_(False).eval()
        self.in_chans, _ = model_input(teacher)
        self.img_size = None if img_size is None else to_pair(img_size, 'img_size')
        self.set_image_statistics(mean, std)

    def set_image_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation per channel that the images are normalised with."""
        config = getattr(self.teacher, 'pretrained_cfg', None) or {}
        own_mean, own_std = (
            _per_channel(config.get(name) or default, self.in_chans)
            for name, default in (('mean', (0.,) * 3), ('std', (1.,) * 3)))
        mean, std = _per_channel(mean, self.in_chans), _per_channel(std, self.in_chans)
        # (x * std + mean - own_mean) / own_std
        self.scale = [a / b for a, b in zip(std, own_std)]
        self.shift = [(a - b) / c for a, b, c in zip(mean, own_mean, own_std)]

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale, shift = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.scale, self.shift))
        images = images * scale + shift
        if self.img_size is not None:
            images = F.interpolate(images, self.img_size, mode='bicubic', antialias=True)
        features = feature_map(self.teacher, images)
        return normalize_features(features.movedim(1, -1)).movedim(-1, 1)

    def check(self, in_chans: int, img_size: Tuple[int, int]) -> None:
        """Check that the teacher accepts a number of channels and an image size.

        Raises:
            ValueError: The teacher does not accept them.
        """
        if in_chans != self.in_chans:
            raise ValueError(
                f'The teacher {model_name(self.teacher)} takes {self.in_chans} channels, the images have {in_chans}.')
        dry_run(self.teacher, in_chans, self.img_size or img_size)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'TeacherTarget':
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)


class EMATeacherMethod(MIMMethod):
    """Base class of methods whose targets are features of a moving average of the model for the whole image.

    The target encoder starts as a copy of the model. It is a submodule of the method, stays in eval mode and gets no
    gradient. Call `update_target` after each optimizer step:

        output = method(images)
        output.loss.backward()
        optimizer.step()
        method.update_target(step / num_steps)

    Only parameters are averaged. Running statistics of batch norms are copied from the model; other buffers, such as
    tables of rotary embeddings, are constants in these models and keep their initial values.
    """

    def add_target_encoder(self, momentum: Tuple[float, float]) -> None:
        """Create the target encoder as a copy of the current model.

        Args:
            momentum: Momentum of the average at the beginning and at the end of training.
        """
        check_momentum(momentum)
        self.momentum = momentum
        self.target_encoder = copy.deepcopy(self.backbone).requires_grad_(False).eval()

    @torch.no_grad()
    def encode_target(self, images: torch.Tensor) -> torch.Tensor:
        """Return the target encoder's patch features (B, N, C) of whole images, normalised by a layer norm without
        weights.
        """
        return normalize_features(feature_map(self.target_encoder, images).flatten(2).transpose(1, 2))

    @torch.no_grad()
    def update_target(self, progress: float) -> None:
        """Update the moving average; call this after each optimizer step.

        Args:
            progress: Share of the training that is done: the number of the step, from 0, divided by the number of all
                steps.

        Raises:
            ValueError: `progress` is not between 0 and 1.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f'progress must be a number from 0 to 1, got {progress}.')
        momentum = self.momentum_at(progress)
        targets, sources = list(self.target_encoder.parameters()), list(self.backbone.parameters())
        torch._foreach_mul_(targets, momentum)
        torch._foreach_add_(targets, sources, alpha=1. - momentum)
        statistics = dict(self.backbone.named_buffers())
        for name, buffer in self.target_encoder.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.copy_(statistics[name])

    def momentum_at(self, progress: float) -> float:
        """Return the momentum after a share of the training: it changes linearly from the first to the second value."""
        return self.momentum[0] + (self.momentum[1] - self.momentum[0]) * progress

    def train(self, mode: bool = True) -> 'EMATeacherMethod':
        """Set the training mode; the target encoder stays in eval mode, without dropout and stochastic depth."""
        super().train(mode)
        self.target_encoder.eval()
        return self


def variety(features: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Measure how diverse the features (..., C) of a teacher are, to detect collapse.

    `target_std` is the standard deviation over all tokens, averaged over channels; it is 0 if all features are equal.
    `target_rank` is the effective number of dimensions in which features vary: the squared sum of the eigenvalues of
    their covariance, divided by the sum of the squared eigenvalues; it is 1 if they vary along a line. It is computed
    from traces, since an eigenvalue decomposition would make the host wait for the device.
    """
    # autocast does not support the meta device
    with nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False):
        tokens = features.flatten(0, -2)
        centered = tokens - tokens.mean(dim=0)
        covariance = centered.T @ centered / len(tokens)
        variances = covariance.diagonal()
        rank = variances.sum().square() / covariance.square().sum().clamp(min=1e-12)
        return dict(target_std=variances.sqrt().mean(), target_rank=rank)


def check_momentum(momentum: Tuple[float, float]) -> None:
    """Check that the momentum of a moving average is a pair of numbers from 0 to 1."""
    valid = isinstance(momentum, (tuple, list)) and len(momentum) == 2
    if not valid or not all(0 <= value <= 1 for value in momentum):
        raise ValueError(
            f'momentum must be a pair (at the beginning, at the end) of numbers from 0 to 1, got {momentum!r}.')


def _per_channel(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    values = tuple(values)
    # adapt statistics of RGB images to another number of channels
    return values if len(values) == channels else tuple(adapt_to_chs(sum(values) / len(values), channels))


def create_target(
        target: Union[str, Target],
        backbone: nn.Module,
        in_chans: int,
        img_size: Tuple[int, int],
        patch_size: Tuple[int, int],
) -> Target:
    """Create a target by name.

    Args:
        target: 'pixels', 'normalized_pixels' (normalised patch by patch), 'hog', or the name of a model whose
            pretrained features are the target. A function is returned unchanged.
        backbone: Model to train. Images are assumed to be normalised as its config says.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        patch_size: Patch (height, width) in pixels for 'normalized_pixels'.

    Raises:
        MIMUnsupportedError: The named model has no feature map.
        ValueError: The target is unknown.
    """
    plain = dict(
        pixels=pixel_target,
        normalized_pixels=partial(normalized_pixel_target, patch_size=patch_size),
        hog=hog_target,
    )
    if callable(target):
        return target
    if target in plain:
        return plain[target]
    if not isinstance(target, str) or not (':' in target or is_model(get_arch_name(target))):
        raise ValueError(
            f'target must be {", ".join(plain)}, the name of a model or a function of images, got {target!r}.')
    return _create_teacher(target, backbone, in_chans, img_size)


def target_shape(
        target: Target,
        in_chans: int,
        img_size: Tuple[int, int],
        device: torch.device,
        stride: Tuple[int, int],
) -> Tuple[int, Tuple[int, int]]:
    """Return the number of channels of a target, and how many of its cells (down, across) each feature predicts.

    Args:
        target: Target.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        device: Device of the method.
        stride: Stride (height, width) in pixels of the feature map that predicts the target.

    Raises:
        ValueError: The target is no map of shape (B, D, h, w), or a cell of the feature map does not consist of whole
            cells of the target.
    """
    if isinstance(target, TeacherTarget):
        target.check(in_chans, img_size)
    with torch.no_grad():
        shape = target(torch.zeros(1, in_chans, *img_size, device=device)).shape
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(
            f'target must return a map of shape (B, D, h, w), for an image of shape {(1, in_chans, *img_size)} it '
            f'returned {tuple(shape)}.')
    _, channels, *grid_size = shape
    map_size = tuple(size // step for size, step in zip(img_size, stride))
    if any(size % grid or grid % cells for size, grid, cells in zip(img_size, grid_size, map_size)):
        raise ValueError(
            f'The target has {grid_size[0]} x {grid_size[1]} cells, which is not a multiple of the {map_size[0]} x '
            f'{map_size[1]} features of the model for images of {img_size[0]} x {img_size[1]} pixels; for a teacher, '
            f'set another image size, TeacherTarget(..., img_size=).')
    return channels, (grid_size[0] // map_size[0], grid_size[1] // map_size[1])


def _create_teacher(name: str, backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> TeacherTarget:
    config = getattr(backbone, 'pretrained_cfg', None) or {}
    statistics = {key: config.get(key) or default for key, default in _IMAGENET_MEAN_STD.items()}
    teacher = create_model(**resolve_model_input_args(
        name, dict(img_size=img_size), num_classes=0, pretrained=True, in_chans=in_chans))
    return TeacherTarget(teacher.to(next(backbone.parameters()).device), **statistics)
