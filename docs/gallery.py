"""Lay out pictures of runs for the pages, with the images side by side and their views one below the other.

    python docs/gallery.py output/pretrain/RUN/reconstructions/epoch-0009.png -o hfdocs/source/images/mim_digits.png

Several pictures are put next to each other. Their columns must be the same: original, masked input, prediction.
"""
import argparse
from pathlib import Path
from typing import List

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # between pictures of a run, see timm/mim/visualize.py
LABELS = ('original', 'what the encoder sees', 'visible + prediction')
SIDE = 150  # of an image on the sheet, in pixels
TOP = 22  # height of a label


def cut(path: Path, columns: List[int], rows: List[int], caption: bool = True) -> List[List[Image.Image]]:
    """Cut a picture that a run wrote into its images.

    Args:
        path: Picture with a row per image and a column per view.
        columns: Columns to take.
        rows: Rows to take, all if empty.
        caption: The picture has a line above the labels.

    Returns:
        Views of each image.
    """
    sheet = Image.open(path).convert('RGB')
    top = 18 * (2 if caption else 1) + GAP
    number = round(sheet.width / 200)
    width = (sheet.width - GAP) // number - GAP
    count = (sheet.height - top) // (width + GAP)
    corners = [[(GAP + column * (width + GAP), top + row * (width + GAP)) for column in columns]
               for row in rows or range(count)]
    return [[sheet.crop((x, y, x + width, y + width)) for x, y in line] for line in corners]


def lay_out(images: List[List[Image.Image]]) -> Image.Image:
    """Return a sheet with a column per image and a labelled row per view."""
    sheet = Image.new('RGB', (
        len(images) * (SIDE + GAP) + GAP, len(LABELS) * (SIDE + TOP) + GAP), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, label in enumerate(LABELS):
        top = row * (SIDE + TOP)
        draw.text((GAP, top + 4), label, fill='black', font=font)
        for column, views in enumerate(images):
            view = views[row].resize((SIDE, SIDE), Image.Resampling.BOX)
            sheet.paste(view, (GAP + column * (SIDE + GAP), top + TOP))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pictures', type=Path, nargs='+', metavar='PICTURE')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE')
    parser.add_argument('--columns', type=int, nargs=3, default=(0, 1, 2), help='columns to take (default: 0 1 2)')
    parser.add_argument('--rows', type=int, nargs='+', default=(), help='rows to take (default: all)')
    args = parser.parse_args()
    images = [views for path in args.pictures for views in cut(path, args.columns, args.rows)]
    lay_out(images).quantize(128).save(args.output, optimize=True)


if __name__ == '__main__':
    main()
