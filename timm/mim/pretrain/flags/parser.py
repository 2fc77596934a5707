"""Argument parser that reports each error in one line, and its actions and help format."""
import argparse
from difflib import get_close_matches
from typing import NoReturn, Optional, Sequence

# What other programs call our flags: transformers, and the code of MAE
_ELSEWHERE = {
    '--learning-rate': '--lr',
    '--blr': '--lr-base',
    '--num-train-epochs': '--epochs',
    '--per-device-train-batch-size': '--batch-size',
    '--gradient-accumulation-steps': '--grad-accum-steps',
    '--accum-iter': '--grad-accum-steps',
    '--output-dir': '--output',
    '--data-path': '--data-dir',
    '--resume-from-checkpoint': '--resume',
}


class OneLineParser(argparse.ArgumentParser):
    """Ends the program with one line and exit code 2 for a mistake, without the list of all flags.

    For a flag that does not exist, the line names the nearest one that does.
    """

    def parse_args(
            self,
            args: Optional[Sequence[str]] = None,
            namespace: Optional[argparse.Namespace] = None,
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word.partition('=')[0] for word in unknown if word.startswith('-')]
            self.end(*(map(self._unknown_flag, flags) if flags else [f"no flag takes the argument '{unknown[0]}'."]))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.end(message)

    def end(self, *mistakes: str) -> NoReturn:
        """End the program with exit code 2 and a line for each mistake."""
        self.exit(2, ''.join(f'{self.prog}: error: {mistake}\n' for mistake in mistakes))

    def _unknown_flag(self, flag: str) -> str:
        ours = self._option_string_actions
        elsewhere = {name: flag for name, flag in _ELSEWHERE.items() if flag in ours}
        near = get_close_matches(flag.replace('_', '-'), [*elsewhere, *ours], n=1, cutoff=0.7)
        meant = [elsewhere.get(name, name) for name in near]
        return f'there is no flag {flag}' + (f'; did you mean {meant[0]}?' if meant else '; --help lists all flags.')


class KeyValues(argparse.Action):
    """Reads KEY=VALUE pairs into a dictionary by `timm.utils.ParseKwargs`, which is imported at the first pair."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from timm.utils import ParseKwargs
        ParseKwargs(self.option_strings, self.dest, nargs='*')(parser, namespace, values, option_string)


class OneOrTwo(argparse.Action):
    """Stores one value as it is, and several values as a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


class DefaultsFormatter(argparse.HelpFormatter):
    """Adds the default to the help of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        plain = action.default in (None, '', False, argparse.SUPPRESS) or action.default in ([], {})
        return action.help if plain or 'default' in action.help else f'{action.help} (default: %(default)s)'
