"""Pre-train with the installed package alone: `python -m timm.mim.pretrain --mim mae --data-dir IMAGES`.

The program does the same as the repository's `train.py --mim`. It has only the flags that apply to pre-training.
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
    """Create the parser of the program. It shows no default for an option that a method's recipe sets."""
    parser = OneLineParser(
        prog=MODULE,
        description='Pre-train an image model by masked image modeling.',
        usage='%(prog)s --mim METHOD --data-dir IMAGES [flags]',
        epilog="Options without a default here take the method's default; the log of a run lists these values.",
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
        argv: Arguments of the command line; None for `sys.argv[1:]`.
    """
    parser = create_parser()
    with exit_codes():
        args = only_given(parser, *parse(parser, argv))
    if 'mim' not in args:
        parser.error('--mim METHOD is missing: give simmim, mae, ijepa or a method of your own.')
    setup_default_logging()
    run(args)


if __name__ == '__main__':
    main()
