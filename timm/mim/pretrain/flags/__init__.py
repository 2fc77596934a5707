"""The flags of pre-training, and the parser of the scripts.

This package imports neither torch nor anything else of timm, so that a script can answer `--help` at once: `training/`
loads it by its path.

- `methods`: the flags of masked image modeling, which a training script adds to its own
- `training`: the flags that pre-training shares with training by labels
- `parser`: a parser whose errors are one line
- `config`: what the user gave, on the command line and in a configuration file
- `errors`: mistakes of the user's
"""
from .config import flags_of as flags_of, only_given as only_given, parse as parse
from .errors import Mistakes as Mistakes, UserError as UserError
from .methods import (
    add_arguments as add_arguments,
    add_probe_arguments as add_probe_arguments,
    add_validation_arguments as add_validation_arguments,
)
from .parser import DefaultsFormatter as DefaultsFormatter, KeyValues as KeyValues, OneLineParser as OneLineParser
from .training import (
    SHARED as SHARED,
    add_shared as add_shared,
    add_training_arguments as add_training_arguments,
    group_of as group_of,
)
