"""Features of an encoder for probes: pooled as the model pools them, of any of its layers."""
import inspect
from typing import Dict, List, Sequence, Union

import torch
import torch.nn as nn

from ...backbone import feature_map
from ..errors import UserError

LAST = 'last'
TOKENS = 'tokens'
Layer = Union[int, str]


def count_layers(encoder: nn.Module, images: torch.Tensor) -> int:
    """Number of layers that features can be taken from, 0 if the model tells of the last one alone.

    Args:
        encoder: Model without a classifier.
        images: Any images that it takes.
    """
    if not hasattr(encoder, 'forward_intermediates'):
        return 0
    return len(encoder.forward_intermediates(images, intermediates_only=True))


def resolve_layers(layers: Sequence[str], count: int) -> List[Layer]:
    """Read what `--mim-probe-layers` says: numbers from 1, `last`, `all`.

    Args:
        layers: What the user said.
        count: Number of layers of the model.

    Raises:
        UserError: There is no such layer.
    """
    layers = [str(layer) for layer in layers]
    if layers == ['all']:
        return [*range(1, count), LAST]
    found: List[Layer] = []
    for layer in layers:
        if layer != LAST and not (layer.isdecimal() and 1 <= int(layer) <= count):
            has = f'the model has 1 to {count}' if count else 'the model tells of its last one alone'
            raise UserError(f"--mim-probe-layers: there is no layer '{layer}'; {has}, or give last or all.")
        found.append(LAST if layer == LAST else int(layer))
    return list(dict.fromkeys(found))


def read_features(
        encoder: nn.Module,
        images: torch.Tensor,
        layers: Sequence[Layer],
        average: bool = False,
        tokens: bool = False,
) -> Dict[Layer, torch.Tensor]:
    """Compute features of images.

    The last layer is pooled by the model itself: class token, average or what it was built with. Other layers are
    pooled to their class token where the model pools to that, and to the average over patches otherwise.

    Args:
        encoder: Model without a classifier.
        images: Normalised images [B, C, H, W].
        layers: Layers from 1 on, or `last`.
        average: Average over patches, whatever the model does.
        tokens: Give the patch tokens of the last layer too.

    Returns:
        Features [B, D] by layer, and tokens [B, N, D].
    """
    features: Dict[Layer, torch.Tensor] = {}
    if LAST in layers and not average:
        features[LAST] = _flat(encoder(images))
    if tokens or (LAST in layers and average):
        last_map = feature_map(encoder, images)
        if average and LAST in layers:
            features[LAST] = last_map.mean((2, 3))
        if tokens:
            features[TOKENS] = last_map.flatten(2).transpose(1, 2)
    features.update(_read_intermediates(encoder, images, [n for n in layers if n != LAST], average))
    return {name: value.float() for name, value in features.items()}


def _read_intermediates(
        encoder: nn.Module,
        images: torch.Tensor,
        numbers: Sequence[int],
        average: bool,
) -> Dict[Layer, torch.Tensor]:
    if not numbers:
        return {}
    allowed = inspect.signature(encoder.forward_intermediates).parameters
    class_token = not average and getattr(encoder, 'global_pool', None) == 'token' and 'return_prefix_tokens' in allowed
    options = dict(norm=True) if 'norm' in allowed else {}
    if class_token:
        options['return_prefix_tokens'] = True
    outputs = encoder.forward_intermediates(
        images, indices=[number - 1 for number in numbers], output_fmt='NCHW', intermediates_only=True, **options)
    if class_token:
        return {number: prefix[:, 0] for number, (_, prefix) in zip(numbers, outputs)}
    return {number: output.mean((2, 3)) for number, output in zip(numbers, outputs)}


def _flat(features: torch.Tensor) -> torch.Tensor:
    """Average what a model without pooling gives: a map [B, D, H, W] or tokens [B, N, D]."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features
