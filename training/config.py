"""What the user asked for: the command line, over a configuration file, over the defaults."""
import argparse
import copy
import logging
from typing import Any, Dict

from .definitions import flags
from .errors import UserError
from .flags import pretraining_flags

_logger = logging.getLogger(__name__)


def with_defaults(parser: argparse.ArgumentParser, given: Dict[str, Any], others: Dict[str, Any]) -> argparse.Namespace:
    """Complete what the user gave with the defaults of the parser, and warn of names in the file that are no flag.

    Args:
        parser: Parser of the script.
        given: The flags that the command line or the file give.
        others: What the file names without being a flag.

    Raises:
        UserError: A flag of pre-training was given.
    """
    meaningless = [
        f"--{name.replace('_', '-')} has a meaning with --mim only."
        for name in sorted(pretraining_flags() & given.keys())
        if given[name] not in (None, {}) and given[name] is not False]
    if meaningless:
        raise UserError(*meaningless)
    if others:
        _logger.warning(f"--config: ignored what is no flag: {', '.join(others)}")
    defaults = {name: copy.deepcopy(action.default) for name, action in flags.flags_of(parser).items()}
    return argparse.Namespace(**{**defaults, **given})
