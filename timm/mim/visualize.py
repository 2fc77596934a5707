"""Write pictures of the inputs and predictions of a method."""
from pathlib import Path
from typing import Sequence, Tuple, Union

import torch
from PIL import Image, ImageDraw

from .output import View

__all__ = ['CAPTION_HEIGHT', 'save_panel', 'save_views', 'to_pil']

_GAP = 8
CAPTION_HEIGHT = _LABEL_HEIGHT = 18
_HIDDEN = (128, 128, 128)
_MAX_SIDE = 768


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
            for picture, hole in zip(column, view.hole):
                picture.paste(_HIDDEN, mask=Image.fromarray(hole[0].cpu().numpy()))
        columns.append(column)
    save_panel(path, list(zip(*columns)), [view.label for view in views], caption)
