#!/usr/bin/env python3
"""Train an image model: with labels, or without (`--mim METHOD`).

    python train.py --data-dir FOLDER --model vit_small_patch16_224 --num-classes 10
    python train.py --mim simmim --data-dir FOLDER --model vit_small_patch16_224

The flags are those of timm's training script. `-c FILE.yaml` gives flags by name; what the command line says goes
before it. The parts of supervised training are in `training/`, those of pre-training in `timm.mim.pretrain`.
"""
import argparse
import sys
from typing import List, Optional, Tuple

import yaml

from timm.mim import pretrain
from timm.models import create_model  # main() takes it from here, so that another one can be put in its place
from timm.utils import setup_default_logging
from training import arguments, config, supervised
from training.errors import UserError
from training.flags import create_parser

parser = create_parser()


def _parse_args(argv: Optional[List[str]] = None) -> Tuple[argparse.Namespace, str]:
    """Parse the command line, over a configuration file.

    Returns:
        The arguments, complete for supervised training and only those given for pre-training; the same in YAML.
    """
    try:
        given, others = config.parse(parser, argv)
        if given.get('mim') is not None:
            args = config.only_given(parser, given, others)
        else:
            args = config.with_defaults(parser, given, others)
            arguments.resolve(args)
    except UserError as e:
        _fail(e)
    return args, yaml.safe_dump(vars(args))


def _fail(error: UserError) -> None:
    print(f'{parser.prog}: error: {error}', file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    args, args_text = _parse_args()
    setup_default_logging()
    if getattr(args, 'mim', None) is not None:
        pretrain.run(args)
    else:
        supervised.run(args, args_text, create_model)


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        _fail(error)
