"""Write pictures of the inputs and predictions of a method."""
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from .output import View

__all__ = ['CAPTION_HEIGHT', 'paint_features', 'save_panel', 'save_views', 'to_pil']

_GAP = 8
CAPTION_HEIGHT = _LABEL_HEIGHT = 18
_HIDDEN = (128, 128, 128)
_MAX_SIDE = 768
_PERCENTILES = (0.02, 0.98)


def to_pil(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Convert a normalised image to an RGB picture.

    An image with four channels loses the fourth (alpha). For any other number than three or four, the picture shows the
    first channel in grey.

    Args:
        image: Normalised image of shape (C, H, W).
        mean: Mean per channel that the image was normalised with.
        std: Standard deviation per channel that the image was normalised with.
    """
    mean = torch.tensor(mean).view(-1, 1, 1)
    std = torch.tensor(std).view(-1, 1, 1)
    image = image.detach().float().cpu() * std + mean
    image = image[:3] if image.shape[0] in (3, 4) else image[:1].expand(3, -1, -1)
    pixels = image.mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _percentiles(image: torch.Tensor, bands: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the 2nd and the 98th percentile of some bands (1 or 3, 1, 1) of an image (C, H, W)."""
    values = image[list(bands)].detach().float().cpu().flatten(1)
    low, high = torch.quantile(values, torch.tensor(_PERCENTILES), dim=1)
    return low.view(-1, 1, 1), torch.maximum(high, low + 1e-6).view(-1, 1, 1)


def _stretched(
        image: torch.Tensor,
        bands: Sequence[int],
        limits: Tuple[torch.Tensor, torch.Tensor],
) -> Image.Image:
    """Convert some bands of an image to an RGB picture, black at the first of two limits and white at the second."""
    low, high = limits
    image = (image[list(bands)].detach().float().cpu() - low) / (high - low)
    pixels = image.expand(3, -1, -1).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def save_panel(
        path: Union[str, Path],
        rows: Sequence[Sequence[Image.Image]],
        labels: Sequence[str],
        caption: str = '',
        min_width: int = 192,
) -> None:
    """Write a table of pictures, one row per image, with a label above each column.

    Pictures of different rows may differ in size. Those with a side of more than 768 pixels are reduced.

    Args:
        path: File to write.
        rows: Pictures, one per label in each row, all of a row of the same size.
        labels: One label per column.
        caption: Line above the labels.
        min_width: Pictures narrower than this, in pixels, are enlarged by the smallest sufficient integer factor.
    """
    sizes = [_shown_size(row[0].size, min_width) for row in rows]
    width = max(min_width, *(size[0] for size in sizes))
    top = _LABEL_HEIGHT * (2 if caption else 1) + _GAP
    sheet = Image.new(
        'RGB',
        (len(labels) * (width + _GAP) + _GAP, top + sum(height + _GAP for _, height in sizes)),
        'white',
    )
    draw = ImageDraw.Draw(sheet)
    if caption:
        draw.text((_GAP, 4), caption, fill='black')
    for column, label in enumerate(labels):
        draw.text((_GAP + column * (width + _GAP), top - _LABEL_HEIGHT), label, fill='black')
    for pictures, size in zip(rows, sizes):
        for column, picture in enumerate(pictures):
            smaller = size[0] < picture.width
            how = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
            sheet.paste(picture.resize(size, how), (_GAP + column * (width + _GAP), top))
        top += size[1] + _GAP
    sheet.save(path)


def _shown_size(size: Tuple[int, int], min_width: int) -> Tuple[int, int]:
    """Return the (width, height) in which a picture is shown: enlarged by a whole factor, or reduced."""
    longer = max(size)
    if longer > _MAX_SIDE:
        return tuple(max(1, round(side * _MAX_SIDE / longer)) for side in size)
    factor = max(1, min(-(-min_width // size[0]), _MAX_SIDE // longer))
    return size[0] * factor, size[1] * factor


def save_views(
        path: Union[str, Path],
        views: Sequence[View],
        mean: Sequence[float],
        std: Sequence[float],
        caption: str = '',
        bands: Optional[Sequence[int]] = None,
) -> None:
    """Write the views of a method as a picture, with a column per view and a row per image.

    Images of bands in their own units are stretched: in each band of the original, the 2nd percentile becomes black and
    the 98th white. All views of an image have the stretch of its original, so that their values can be compared.

    Args:
        path: File to write.
        views: Result of `MIMMethod.views`.
        mean: Mean per channel that the images were normalised with.
        std: Standard deviation per channel that the images were normalised with.
        caption: Line above the labels.
        bands: Bands to show as red, green and blue, or one band to show in grey, from 0 on; None for images whose
            values lie between 0 and 1.
    """
    columns = []
    limits = [None if bands is None else _percentiles(image, bands) for image in views[0].images]
    for view in views:
        column = [
            to_pil(image, mean, std) if limit is None else _stretched(image, bands, limit)
            for image, limit in zip(view.images, limits)]
        if view.hole is not None:
            for picture, hole in zip(column, view.hole):
                picture.paste(_HIDDEN, mask=Image.fromarray(hole[0].cpu().numpy()))
        columns.append(column)
    save_panel(path, list(zip(*columns)), [view.label for view in views], caption)


def paint_features(
        *features: torch.Tensor,
        grid_size: Tuple[int, int],
        img_size: Tuple[int, int],
        channels: int,
) -> List[torch.Tensor]:
    """Paint features by the principal components of the first ones, one component for each image channel.

    Args:
        *features: Features of shape (B, h * w, D).
        grid_size: Grid (h, w) of the features.
        img_size: Size (H, W) of the pictures in pixels.
        channels: Number of channels C of a picture.

    Returns:
        Pictures of shape (B, C, H, W), each channel with mean 0 and standard deviation 1 over the first features.
    """
    tokens = features[0].flatten(0, 1)
    mean = tokens.mean(dim=0)
    axes = torch.linalg.svd(tokens - mean, full_matrices=False)[2][:channels].T
    axes = F.pad(axes, (0, channels - axes.shape[1]))  # there are no more components than features
    scale = ((tokens - mean) @ axes).std(dim=0).clamp(min=1e-6)
    pictures = []
    for values in features:
        maps = ((values - mean) @ axes / scale).transpose(1, 2).unflatten(2, grid_size)
        pictures.append(F.interpolate(maps, img_size, mode='nearest'))
    return pictures
