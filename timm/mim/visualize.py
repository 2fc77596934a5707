"""Write pictures of the inputs and predictions of a method."""
from pathlib import Path
from typing import List, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from .output import View

__all__ = ['CAPTION_HEIGHT', 'paint_features', 'save_panel', 'save_views', 'to_pil']

_GAP = 8
CAPTION_HEIGHT = _LABEL_HEIGHT = 18
_HIDDEN = (128, 128, 128)


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


def save_panel(
        path: Union[str, Path],
        rows: Sequence[Sequence[Image.Image]],
        labels: Sequence[str],
        caption: str = '',
        min_width: int = 192,
) -> None:
    """Write a table of pictures, one row per image, with a label above each column.

    Args:
        path: File to write.
        rows: Pictures of equal size, one per label in each row.
        labels: One label per column.
        caption: Line above the labels.
        min_width: Pictures narrower than this, in pixels, are enlarged by the smallest sufficient integer factor.
    """
    width, height = rows[0][0].size
    factor = max(1, -(-min_width // width))
    width, height = width * factor, height * factor
    top = _LABEL_HEIGHT * (2 if caption else 1) + _GAP
    sheet = Image.new(
        'RGB',
        (len(labels) * (width + _GAP) + _GAP, top + len(rows) * (height + _GAP)),
        'white',
    )
    draw = ImageDraw.Draw(sheet)
    if caption:
        draw.text((_GAP, 4), caption, fill='black')
    for column, label in enumerate(labels):
        draw.text((_GAP + column * (width + _GAP), top - _LABEL_HEIGHT), label, fill='black')
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            corner = _GAP + column * (width + _GAP), top + row * (height + _GAP)
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), corner)
    sheet.save(path)


def save_views(
        path: Union[str, Path],
        views: Sequence[View],
        mean: Sequence[float],
        std: Sequence[float],
        caption: str = '',
) -> None:
    """Write the views of a method as a picture, with a column per view and a row per image.

    Args:
        path: File to write.
        views: Result of `MIMMethod.views`.
        mean: Mean per channel that the images were normalised with.
        std: Standard deviation per channel that the images were normalised with.
        caption: Line above the labels.
    """
    columns = []
    for view in views:
        column = [to_pil(image, mean, std) for image in view.images]
        if view.hole is not None:
            for picture, hole in zip(column, view.hole.cpu().numpy()):
                picture.paste(_HIDDEN, mask=Image.fromarray(hole[0]))
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
