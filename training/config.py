"""What the user asked for: the command line, over a configuration file, over the defaults."""
import argparse
import copy
import logging
from difflib import get_close_matches
from typing import Any, Dict, List, Optional, Tuple

import yaml

from timm.utils import ParseKwargs
from .errors import UserError
from .flags import pretraining_flags

_logger = logging.getLogger(__name__)

_ABSENT = object()


def parse(parser: argparse.ArgumentParser, argv: Optional[List[str]] = None) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Parse the command line, and the file that its `--config` names.

    Args:
        parser: Parser of the script.
        argv: Command line without the program, `sys.argv[1:]` if None.

    Returns:
        The flags that the command line or the file give, and what the file names without being a flag.

    Raises:
        UserError: The file cannot be read, or a value in it is of the wrong kind.
    """
    actions = flags_of(parser)
    # argparse leaves alone what a namespace holds already, so that what is absent afterwards was not given
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys([*actions, 'config'], _ABSENT)))
    given = {name: value for name, value in vars(namespace).items() if value is not _ABSENT}
    if given.get('data', '') is None:
        del given['data']
    path = given.pop('config', None)
    if not path:
        return given, {}
    flags, others = {}, {}
    for name, value in _read(path).items():
        action = actions.get(str(name).replace('-', '_'))
        if action is None:
            others[str(name)] = value
        else:
            flags[action.dest] = _checked(action, value, path)
    return {**flags, **given}, others


def flags_of(parser: argparse.ArgumentParser) -> Dict[str, argparse.Action]:
    """Return the flags of a parser by name, without `--help` and `--config`."""
    return {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}


def with_defaults(parser: argparse.ArgumentParser, given: Dict[str, Any], others: Dict[str, Any]) -> argparse.Namespace:
    """Complete what the user gave with the defaults of the parser, and warn of names in the file that are no flag.

    Raises:
        UserError: A flag of pre-training was given.
    """
    for name in pretraining_flags() & given.keys():
        if given[name] not in (None, {}) and given[name] is not False:
            raise UserError(f"--{name.replace('_', '-')} has a meaning with --mim only.")
    if others:
        _logger.warning(f"--config: ignored what is no flag: {', '.join(others)}")
    defaults = {name: copy.deepcopy(action.default) for name, action in flags_of(parser).items()}
    return argparse.Namespace(**{**defaults, **given})


def only_given(parser: argparse.ArgumentParser, given: Dict[str, Any], others: Dict[str, Any]) -> argparse.Namespace:
    """Return what the user gave, without values that say nothing: null, a switch that is off, no arguments.

    Raises:
        UserError: The file names something that is no flag.
    """
    actions = flags_of(parser)
    for name in others:
        near = get_close_matches(name, actions, n=1)
        raise UserError(f"--config names '{name}', which is no flag" + (f'; {near[0]}?' if near else '.'))
    return argparse.Namespace(**{
        name: value for name, value in given.items() if value not in (None, [], {}) and value is not False
    })


def _read(path: str) -> Dict[str, Any]:
    try:
        with open(path) as f:
            config = yaml.safe_load(f) or {}
    except OSError as e:
        raise UserError(f"--config: '{path}' cannot be read: {e.strerror}.") from e
    except UnicodeDecodeError:
        raise UserError(f"--config: '{path}' is not YAML: it is no text.") from None
    except yaml.YAMLError as e:
        raise UserError(f"--config: '{path}' is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(config, dict):
        raise UserError(f"--config: '{path}' must hold flags by name, as 'batch_size: 64'.")
    return config


def _checked(action: argparse.Action, value: Any, path: str) -> Any:
    """Check a value of the file as the command line is checked, and convert it likewise."""
    try:
        return _converted(action, value)
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"--config: '{path}' gives {action.dest} the value {value!r}, which it cannot have.") from None


def _converted(action: argparse.Action, value: Any) -> Any:
    if value is None:
        return None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if action.nargs == '?' and isinstance(value, bool):
        return action.const if value else None
    if action.nargs in (None, '?'):
        return _one(action, value)
    if isinstance(action, ParseKwargs):
        if isinstance(value, dict):
            return value
        values = [value] if isinstance(value, str) else value
    else:
        values = [_one(action, v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise ValueError
    namespace = argparse.Namespace()
    action(None, namespace, values)
    return getattr(namespace, action.dest)


def _one(action: argparse.Action, value: Any) -> Any:
    convert = action.type or str
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError
    if convert is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    value = convert(value)
    if action.choices is not None and value not in action.choices:
        raise ValueError
    return value
