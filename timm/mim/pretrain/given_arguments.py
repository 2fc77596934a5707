"""Which of a script's arguments the user gave, for scripts whose flags have defaults of their own."""
import argparse
from typing import Any, Dict, Optional, Sequence

import yaml


def given_arguments(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line again, for what the user gave, and nothing else.

    The defaults of a script for supervised training are not those of pre-training, so that `run` must not see them.

    Args:
        parser: The parser of the script. What it must know of `-c/--config FILE` is known here: flags that the YAML
            file names count as given, and what the command line says goes before them.
        argv: The command line, that of the program if None.

    Returns:
        The arguments that were given, and no others.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    config, rest = config_parser.parse_known_args(argv)
    from_file = _read(config.config)
    parser.set_defaults(**from_file)  # so that the parser converts them as it does what it is given
    values = vars(parser.parse_args(rest))
    # where a name has a value already, the parser does not fill in its default
    on_command_line = vars(parser.parse_args(rest, argparse.Namespace(**dict.fromkeys(values))))
    given = {*from_file, *(name for name, value in on_command_line.items() if value is not None)}
    return argparse.Namespace(**{name: value for name, value in values.items() if name in given and value is not None})


def _read(path: str) -> Dict[str, Any]:
    if not path:
        return {}
    with open(path) as f:
        return yaml.safe_load(f) or {}
