#!/usr/bin/env python3
"""Evaluate a model, or several: `python validate.py --data-dir FOLDER --model NAME --checkpoint FILE`.

The flags are those of timm's validation script. `--model` may be a name with wildcards, a file with one name per line
or `all`, and `--checkpoint` a folder. `--mim METHOD` evaluates the checkpoint of a pre-training run.

The script imports timm and torch after it has parsed the flags, so that --help and errors in flags appear at once.
"""
import json
from typing import Any, Dict

from training import validation_flags
from training.definitions import flags

parser = validation_flags.create_parser()


def create_model(*args, **kwargs):
    """Call `timm.create_model`. `validate` calls this function, so that a caller can replace it."""
    from timm.models import create_model
    return create_model(*args, **kwargs)


def validate(args) -> Dict[str, Any]:
    """Evaluate one model.

    Args:
        args: Arguments of `parser`.

    Returns:
        Name and metrics of the model, its number of parameters, and the size of the images.
    """
    from training import validation
    return validation.validate(args, create_model)


def main() -> None:
    args = parser.parse_args()
    from timm.utils import setup_default_logging
    setup_default_logging()
    if args.mim is not None:
        from timm.mim.pretrain import validate as pretraining
        pretraining.run(flags.only_given(parser, *flags.parse(parser)))
        return
    from training import bulk_validation
    results = bulk_validation.validate_all(args, validate)
    if args.results_file:
        bulk_validation.write_results(args.results_file, results, args.results_format)
    print(f'--result\n{json.dumps(results, indent=4)}')


if __name__ == '__main__':
    try:
        main()
    except flags.UserError as error:
        parser.exit(2, ''.join(f'{parser.prog}: error: {mistake}\n' for mistake in error.mistakes))
