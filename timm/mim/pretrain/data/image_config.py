"""What images are: mode, size, normalisation."""
import argparse
from typing import Any, Dict, Optional

import torch.nn as nn
from PIL import Image

from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from ..errors import UserError

_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def image_mode(in_chans: int, mode: Optional[str] = None) -> str:
    """Return the PIL mode that images are converted to.

    Args:
        in_chans: Input channels of the model.
        mode: PIL mode that the user wants, the usual one for so many channels if None.

    Raises:
        UserError: There is no such mode, or it has another number of bands.
    """
    if mode is None:
        if in_chans not in _MODES:
            raise UserError(
                f'--in-chans {in_chans}: images can be read with 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA) channels.')
        return _MODES[in_chans]
    try:
        bands = len(Image.new(mode, (1, 1)).getbands())
    except ValueError:
        raise UserError(f"--input-img-mode: PIL has no mode '{mode}'; L, RGB or RGBA, for example.") from None
    if bands != in_chans:
        raise UserError(f'--input-img-mode {mode} has {bands} channel(s), the model takes {in_chans}.')
    return mode


def resolve_image_config(options: argparse.Namespace, method: nn.Module, mode: str) -> Dict[str, Any]:
    """Return input size, mean, standard deviation, interpolation, crop and mode of the images.

    Args:
        options: Options of the run.
        method: Method, whose size is that of the images, and whose backbone has the defaults of the rest.
        mode: PIL mode of the images.
    """
    config = resolve_data_config(
        dict(
            input_size=(options.in_chans, *method.img_size),
            mean=options.mean,
            std=options.std,
            interpolation=options.interpolation,
            crop_pct=options.crop_pct,
        ),
        model=method.backbone,
    )
    for name in ('mean', 'std'):
        values = config[name]
        if len(values) != options.in_chans:  # the model's statistics are of RGB images
            config[name] = adapt_to_chs(sum(values) / len(values), options.in_chans)
    return {**config, 'mode': mode}
