"""Read the flags that the user gave, from the command line and from a configuration file."""
import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import yaml

from .errors import UserError
from .parser import OneLineParser

RECIPES = Path(__file__).parents[2] / 'recipes'  # of the installed package

_ABSENT = object()


def parse(
        parser: argparse.ArgumentParser,
        argv: Optional[Sequence[str]] = None,
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Parse the command line, and the file that `-c/--config` names. The command line overrides the file.

    Args:
        parser: Parser of the script. It need not define `--config`.
        argv: Arguments of the command line; None for `sys.argv[1:]`.

    Returns:
        The flags that the user gave, and the entries of the file that are not flags.

    Raises:
        UserError: The file cannot be read, or a value in it does not fit its flag.
    """
    config_parser = OneLineParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config')
    config, argv = config_parser.parse_known_args(argv)
    actions = flags_of(parser)
    # argparse keeps values that the namespace already has, so a flag that is still _ABSENT afterwards was not given
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys([*actions, 'config'], _ABSENT)))
    given = {name: value for name, value in vars(namespace).items() if value is not _ABSENT}
    path = given.pop('config', config.config)
    for name, action in actions.items():
        if not action.option_strings and given.get(name, '') is None:  # argparse sets an absent positional to None
            del given[name]
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


def only_given(parser: argparse.ArgumentParser, given: Dict[str, Any], others: Dict[str, Any]) -> argparse.Namespace:
    """Return what the user gave, without empty values: None, False, and empty lists and dictionaries.

    Args:
        parser: Parser of the script.
        given: The flags that the user gave.
        others: Entries of the configuration file that are not flags.

    Raises:
        UserError: There are such entries.
    """
    actions = flags_of(parser)
    if others:
        raise UserError(*(_no_flag(name, actions) for name in others))
    return argparse.Namespace(**{
        name: value for name, value in given.items() if value not in (None, [], {}) and value is not False
    })


def _no_flag(name: str, actions: Dict[str, argparse.Action]) -> str:
    near = get_close_matches(name, actions, n=1)
    return f"--config contains '{name}', which is not a flag" + (f'; did you mean {near[0]}?' if near else '.')


def _read(path: str) -> Dict[str, Any]:
    """Read a configuration file, or the recipe of this name in the package."""
    file = RECIPES / f'{path}.yaml'
    if Path(path).exists() or Path(path).name != path or not file.is_file():
        file = Path(path)
    try:
        config = yaml.safe_load(file.read_text()) or {}
    except OSError as e:
        recipes = sorted(file.stem for file in RECIPES.glob('*.yaml'))
        near = get_close_matches(Path(path).stem, recipes, n=3, cutoff=0.4) or recipes
        hint = f' Recipes that come with timm.mim: {", ".join(near)}.' if near else ''
        raise UserError(f"--config: '{path}' cannot be read: {e.strerror}.{hint}") from e
    except (UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"--config: '{path}' is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(config, dict):
        raise UserError(f"--config: '{path}' must contain flags by name, such as 'batch_size: 64'.")
    return config


def _checked(action: argparse.Action, value: Any, path: str) -> Any:
    """Check and convert a value of the file in the same way as a value on the command line."""
    try:
        return _converted(action, value)
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"--config: '{path}' gives {action.dest} the invalid value {value!r}.") from None


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
    if _reads_pairs(action):
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


def _reads_pairs(action: argparse.Action) -> bool:
    """Return whether a flag takes KEY=VALUE pairs: by `KeyValues`, or by `ParseKwargs` in timm's own script."""
    return type(action).__name__ in ('KeyValues', 'ParseKwargs')


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
