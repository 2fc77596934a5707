""" Targets by Name
"""
from functools import partial
from typing import Callable, Tuple, Union

import torch
import torch.nn as nn

from timm.models import create_model, is_model, resolve_model_input_args
from timm.models._registry import get_arch_name

from .hog import hog_target
from .targets import normalized_pixel_target, pixel_target
from .teacher import TeacherTarget

__all__ = ['Target', 'create_target', 'target_shape']

Target = Callable[[torch.Tensor], torch.Tensor]

_IMAGENET_MEAN_STD = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def create_target(
        target: Union[str, Target],
        backbone: nn.Module,
        in_chans: int,
        img_size: Tuple[int, int],
        patch_size: Tuple[int, int],
) -> Target:
    """ Get a target by its name.

    Args:
        target: 'pixels', 'normalized_pixels' (by their patches), 'hog', or the name of a model whose pretrained
            features are the target; or a target itself, which is returned.
        backbone: Model that is trained, whose normalisation the images have.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        patch_size: Patch (height, width) in pixels to normalise.

    Raises:
        MIMUnsupportedError: The model gives no feature map.
        ValueError: There is no such target.
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
    """ Number of channels of a target, and how many of its cells, down and across, a feature predicts.

    Args:
        target: Target.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        device: Device of the method.
        stride: Stride (height, width) in pixels of the feature map that the target is predicted from.

    Raises:
        ValueError: The cells of the target do not tile those of the feature map.
    """
    if isinstance(target, TeacherTarget):
        target.check(in_chans, img_size)
    with torch.no_grad():
        _, channels, *grid_size = target(torch.zeros(1, in_chans, *img_size, device=device)).shape
    map_size = tuple(size // step for size, step in zip(img_size, stride))
    if any(size % grid or grid % cells for size, grid, cells in zip(img_size, grid_size, map_size)):
        raise ValueError(
            f'The target has {grid_size[0]} x {grid_size[1]} cells, which do not tile the {map_size[0]} x '
            f'{map_size[1]} features that the model has of {img_size[0]} x {img_size[1]} pixels; a teacher can be '
            f'given images of another size, TeacherTarget(..., img_size=).')
    return channels, (grid_size[0] // map_size[0], grid_size[1] // map_size[1])


def _create_teacher(name: str, backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> TeacherTarget:
    config = getattr(backbone, 'pretrained_cfg', None) or {}
    statistics = {key: config.get(key) or default for key, default in _IMAGENET_MEAN_STD.items()}
    teacher = create_model(**resolve_model_input_args(
        name, dict(img_size=img_size), num_classes=0, pretrained=True, in_chans=in_chans))
    return TeacherTarget(teacher.to(next(backbone.parameters()).device), **statistics)
