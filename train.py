#!/usr/bin/env python3
"""Train an image model: with labels, or without (`--mim METHOD`).

    python train.py --data-dir FOLDER --model vit_small_patch16_224 --num-classes 10
    python train.py --mim simmim --data-dir FOLDER --model vit_small_patch16_224

The flags are those of timm's training script. `-c FILE.yaml` reads flags from a file; the command line overrides it.
Supervised training is in `training/`, pre-training in `timm.mim.pretrain`.

The script imports timm and torch after it has parsed the flags, so that --help and errors in flags appear at once.
"""
import argparse
import sys
from typing import List, Optional, Tuple

import yaml

from training import config
from training.definitions import flags
from training.flags import create_parser

parser = create_parser()


def _parse_args(argv: Optional[List[str]] = None) -> Tuple[argparse.Namespace, str]:
    """Parse the command line and the configuration file. Ends the program with exit code 2 on a mistake.

    Returns:
        The arguments, and the same as YAML. For supervised training they include defaults; for pre-training they are
        only those that the user gave.
    """
    try:
        given, others = flags.parse(parser, argv)
        if given.get('mim') is not None:
            args = flags.only_given(parser, given, others)
        else:
            args = config.with_defaults(parser, given, others)
            from training import arguments
            arguments.resolve(args)
    except flags.UserError as e:
        _fail(e)
    return args, yaml.safe_dump(vars(args))


def _fail(error: flags.UserError) -> None:
    for mistake in error.mistakes:
        print(f'{parser.prog}: error: {mistake}', file=sys.stderr)
    raise SystemExit(2)


def create_model(*args, **kwargs):
    """Call `timm.create_model`. `main` calls this function, so that a caller can replace it."""
    from timm.models import create_model
    return create_model(*args, **kwargs)


def main() -> None:
    args, args_text = _parse_args()
    from timm.utils import setup_default_logging
    setup_default_logging()
    if getattr(args, 'mim', None) is not None:
        from timm.mim import pretrain
        pretrain.run(args)
    else:
        from training import supervised
        supervised.run(args, args_text, create_model)


if __name__ == '__main__':
    try:
        main()
    except flags.UserError as error:
        _fail(error)
