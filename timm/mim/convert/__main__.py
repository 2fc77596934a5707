"""Command of the Conversion, see `timm.mim.convert`"""
import argparse
import sys
from typing import List, Optional

from timm.utils import ParseKwargs

from ..pretrain.flags import OneLineParser
from . import FORMATS, Conversion, ConversionError, __doc__ as description, convert


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command. A user's mistake is one line, and exit code 2."""
    parser = _parser()
    try:
        args = parser.parse_args(arguments)
    except ValueError:  # ParseKwargs of timm
        parser.error('--model-kwargs and --mim-kwargs take NAME=VALUE, as in num_heads=12.')
    size = args.img_size
    try:
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ConversionError('--img-size takes one positive number, or height and width.')
        conversion = convert(
            args.source,
            args.dest,
            args.to,
            args.model,
            None if size is None else (size[0], size[-1]),
            args.model_kwargs,
            args.mim_kwargs,
            args.ema,
            args.force,
        )
    except ConversionError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(_report(args.dest, conversion))
    for note in conversion.notes:
        print(f'note: {note}', file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog='python -m timm.mim.convert', description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='checkpoint to read, a file or a folder')
    parser.add_argument('dest', metavar='DEST', help='file or folder to write')
    parser.add_argument('--to', metavar='FORMAT', help=f'format to write: {", ".join(FORMATS)}')
    parser.add_argument('--model', metavar='NAME', help='timm model of the encoder')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    parser.add_argument('--img-size', nargs='+', type=int, metavar='PIXELS', help='height and width, or one number')
    parser.add_argument('--mim-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    parser.add_argument('--ema', action='store_true', help='read the moving average of a training checkpoint')
    parser.add_argument('--force', action='store_true', help='replace DEST if it exists')
    return parser


def _report(dest: str, conversion: Conversion) -> str:
    """What was written, and how to load it."""
    recipe = conversion.recipe
    lines = [f'{conversion.source_format} -> {conversion.dest_format}: {dest}']
    if conversion.dest_format == 'mim':
        lines += [
            f'  method = {recipe.call()}',
            f"  method.load_state_dict(safetensors.torch.load_file('{dest}'))",
        ]
    elif conversion.dest_format in ('encoder', 'target-encoder'):
        lines.append(f"  encoder = {recipe.call()[:-1]}, checkpoint_path='{dest}')")
    else:
        lines.append(f'  the model: {recipe.call()}')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
