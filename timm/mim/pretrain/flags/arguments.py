"""Build parsers from the table of options.

A training script that already has timm's flags needs only `add_arguments`. `add_training_arguments` adds the flags that
pre-training shares with supervised training. Each program sets the defaults of its own parser.
"""
import argparse
import typing
from typing import Any, Dict, Tuple

from .parser import KeyValues
from .run_options import FIELDS, GROUPS, MaskedImageModelingOptions, RunOptions

_TYPES = typing.get_type_hints(RunOptions)
_PROBES = ('mim_probe_dir', 'mim_probe', 'mim_probe_layers', 'mim_probe_pool')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of masked image modeling to the parser of a training script."""
    _add_group(parser, MaskedImageModelingOptions)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that pre-training shares with supervised training to a parser, in groups."""
    parser.add_argument(
        '-c', '--config', metavar='FILE',
        help='YAML file with flags by name, or the name of a recipe that comes with timm.mim; flags on the command '
             'line override it')
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    for options in GROUPS:
        if options is not MaskedImageModelingOptions:
            _add_group(parser, options)


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of masked image modeling to the parser of a validation script."""
    group = parser.add_argument_group(MaskedImageModelingOptions.__doc__)
    add_option(group, 'mim', help='evaluate a --checkpoint that was pre-trained with this method')
    add_option(
        group, 'mim_module', help='Python file, or name of a module, with the method (default: as in the run)')
    group.add_argument(
        '--mask-seed', type=int, metavar='N', help='seed of the masks (default: the seed of evaluation in training)')
    add_option(group, 'max_unreadable', help='end if more than this fraction cannot be read (default: 0.1)')
    add_option(group, 'max_pixels', help='count images with more pixels as unreadable (default: 89478485)')
    add_option(group, 'mim_bands')
    group.add_argument(
        '--mim-pictures', metavar='FILE', help='write a picture of what the method sees and predicts to this file')
    for name in _PROBES:
        add_option(group, name)


def add_option(group: argparse._ActionsContainer, name: str, **changes: Any) -> None:
    """Add the flag of an option to a parser, or to a group of one.

    Args:
        group: Where to add it.
        name: Name of the option.
        **changes: Arguments of `add_argument` that replace those of the table.
    """
    flags, arguments = _flags_and_arguments(name)
    group.add_argument(*flags, **{**arguments, **changes})


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Return the group of flags with this title, a new one if there is none."""
    found = [group for group in parser._action_groups if group.title == title]
    return found[0] if found else parser.add_argument_group(title)


def _add_group(parser: argparse.ArgumentParser, options: type) -> None:
    group = group_of(parser, options.__doc__)
    for name in options.__annotations__:
        add_option(group, name)


def _flags_and_arguments(name: str) -> Tuple[Tuple[str, ...], Dict[str, Any]]:
    """Return the spellings of a flag, and the other arguments of `add_argument`."""
    of_option = FIELDS[name].metadata
    long = '--' + name.replace('_', '-')
    short = tuple(flag for flag in of_option['also'] if not flag.startswith('--'))
    flags = (*short, long, *(flag for flag in of_option['also'] if flag not in short))
    arguments = dict(help=of_option['help'])
    if of_option['metavar']:
        arguments['metavar'] = of_option['metavar']
    return flags, {**arguments, **_parsing(_TYPES[name]), **of_option['parsing']}


def _parsing(kind: Any) -> Dict[str, Any]:
    """Return the arguments of `add_argument` that make argparse read values of a type."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    origin = typing.get_origin(kind)
    if kind is bool:
        return dict(action='store_true')
    if origin is list:
        return dict(type=parts[0], nargs='+')
    if origin is dict:
        return dict(action=KeyValues, nargs='*')
    if origin is typing.Union:  # Optional, or a Size
        return _parsing(parts[-1])
    return dict(type=kind)
