"""Complete the flags that the user gave with the defaults of supervised training."""
import argparse
import copy
import logging
from typing import Any, Dict

from .definitions import flags
from .errors import UserError
from .flags import pretraining_flags

_logger = logging.getLogger(__name__)


def with_defaults(parser: argparse.ArgumentParser, given: Dict[str, Any], others: Dict[str, Any]) -> argparse.Namespace:
    """Complete the flags that the user gave with the parser's defaults, and warn about entries that are not flags.

    Args:
        parser: Parser of the script.
        given: The flags that the user gave, on the command line or in the configuration file.
        others: Entries of the configuration file that are not flags.

    Raises:
        UserError: A flag of pre-training was given.
    """
    meaningless = [
        f"--{name.replace('_', '-')} works only with --mim."
        for name in sorted(pretraining_flags() & given.keys())
        if given[name] not in (None, {}) and given[name] is not False]
    if meaningless:
        raise UserError(*meaningless)
    if others:
        _logger.warning(f"--config: ignored entries that are not flags: {', '.join(others)}")
    defaults = {name: copy.deepcopy(action.default) for name, action in flags.flags_of(parser).items()}
    return argparse.Namespace(**{**defaults, **given})
