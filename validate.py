#!/usr/bin/env python3
"""Evaluate a model, or several: `python validate.py --data-dir FOLDER --model NAME --checkpoint FILE`.

The flags are those of timm's validation script. `--model` may be a name with wildcards, a file with one name per line
or `all`, and `--checkpoint` a folder. `--mim METHOD` evaluates the checkpoint of a pre-training run.
"""
import json
from typing import Any, Dict

from timm.mim.pretrain import given_arguments
from timm.mim.pretrain import validate as pretraining
from timm.models import create_model  # validate() takes it from here, so that another one can be put in its place
from timm.utils import setup_default_logging
from training import bulk_validation, validation, validation_flags
from training.errors import UserError

parser = validation_flags.create_parser()
pretraining.add_arguments(parser)


def validate(args) -> Dict[str, Any]:
    """Evaluate one model.

    Args:
        args: Arguments of `parser`.

    Returns:
        Name, metrics, size of the model and of the images.
    """
    return validation.validate(args, create_model)


def main() -> None:
    setup_default_logging()
    args = parser.parse_args()
    if args.mim is not None:
        pretraining.run(given_arguments(parser))
        return
    results = bulk_validation.validate_all(args, validate)
    if args.results_file:
        bulk_validation.write_results(args.results_file, results, args.results_format)
    print(f'--result\n{json.dumps(results, indent=4)}')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
