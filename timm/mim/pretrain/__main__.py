"""Pre-training without a clone: `python -m timm.mim.pretrain --mim mae --data-dir IMAGES`.

It is what `train.py --mim` of the repository runs, with the flags that have a meaning in pre-training.
"""
import argparse
from typing import List, Optional

from timm.utils import setup_default_logging
from .errors import MODULE, exit_codes
from .flags import DefaultsFormatter, OneLineParser, add_arguments, add_training_arguments, only_given, parse
from .flags.run_options import DEFAULTS
from .recipes import RECIPES
from .run_loop import run


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of the program. Where the recipe of a method has a value, no default is shown."""
    parser = OneLineParser(
        prog=MODULE,
        description='Pre-train an image model by masked image modeling.',
        usage='%(prog)s --mim METHOD --data-dir IMAGES [flags]',
        epilog='What the recipe of the method decides has no default here; the log of a run says what it decided.',
        formatter_class=DefaultsFormatter,
    )
    add_arguments(parser)
    add_training_arguments(parser)
    from_recipes = {name for recipe in RECIPES.values() for name in recipe}
    parser.set_defaults(**{name: None if name in from_recipes else value for name, value in DEFAULTS.items()})
    return parser


def main(argv: Optional[List[str]] = None) -> None:
    """Run the program.

    Args:
        argv: Command line without the program, that of the process if None.
    """
    parser = create_parser()
    with exit_codes():
        args = only_given(parser, *parse(parser, argv))
    if 'mim' not in args:
        parser.error('--mim METHOD says how to pre-train: simmim, mae or ijepa.')
    setup_default_logging()
    run(args)


if __name__ == '__main__':
    main()
