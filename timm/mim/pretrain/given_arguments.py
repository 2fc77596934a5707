"""Which of a script's arguments the user gave, for scripts whose flags have defaults of their own."""
import argparse
from typing import Optional, Sequence

from .flags import UserError, only_given, parse


def given_arguments(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line again, for what the user gave, and nothing else.

    The defaults of a script for supervised training are not those of pre-training, so that `run` must not see them.
    Ends the program with exit code 2 where the configuration file cannot be read or names what is no flag.

    Args:
        parser: The parser of the script. What it must know of `-c/--config FILE` is known here: flags that the YAML
            file names count as given, and what the command line says goes before them.
        argv: The command line, that of the program if None.

    Returns:
        The arguments that were given, and no others.
    """
    try:
        return only_given(parser, *parse(parser, argv))
    except UserError as e:
        parser.error(str(e))
