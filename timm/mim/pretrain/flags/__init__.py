"""The flags of pre-training, and the parser of the scripts.

This package imports neither torch nor anything else of timm, so that a script can answer `--help` at once: `training/`
loads it by its path.

- `run_options`: the table of all options
- `arguments`: the parsers that are built from it
- `parser`: a parser that reports an error in one line
- `config`: reads what the user gave, on the command line and in a configuration file
- `errors`: errors that the user made
"""
from .arguments import (
    add_arguments as add_arguments,
    add_option as add_option,
    add_training_arguments as add_training_arguments,
    add_validation_arguments as add_validation_arguments,
    group_of as group_of,
)
from .config import flags_of as flags_of, only_given as only_given, parse as parse
from .errors import Mistakes as Mistakes, UserError as UserError
from .parser import DefaultsFormatter as DefaultsFormatter, KeyValues as KeyValues, OneLineParser as OneLineParser
from .run_options import DEFAULTS as DEFAULTS, FIELDS as FIELDS, RunOptions as RunOptions
