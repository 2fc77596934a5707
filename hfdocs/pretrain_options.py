"""Writes the page of the options of pre-training, `python hfdocs/pretrain_options.py` with timm installed."""
import dataclasses
import typing
from pathlib import Path
from typing import Any, Iterator, List

from timm.mim.pretrain.errors import flag_name
from timm.mim.pretrain.flags.run_options import GROUPS, TAKES_EFFECT, OneOrTwo, RunOptions
from timm.mim.pretrain.recipes import RECIPES

_TYPES = {
    name: next((part for part in typing.get_args(kind) if typing.get_origin(part)), kind)  # without Optional
    for name, kind in typing.get_type_hints(RunOptions).items()}

PAGE = Path(__file__).with_name('source') / 'pretrain_options.mdx'

HEAD = """\
# Options of Pre-training

All options of `train.py --mim METHOD` and `python -m timm.mim.pretrain`. The column "Default" shows the value of a \
run for which neither you nor the recipe of the method gives one; the last table shows the values from the recipes. \
A YAML file for `-c FILE` gives options by name, with `_` in place of `-`. When a run resumes, a changed option \
takes effect from the checkpoint on, unless the last column says that the change is refused.
"""


def table(header: List[str], rows: Iterator[List[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(_escape, line))} |' for line in lines) + '\n'


def _escape(cell: str) -> str:
    return cell.replace('|', '&#124;').replace('<', '&lt;')


def shown(value: Any) -> str:
    """Return a default as the user would write it, and nothing for a value that stands for no value."""
    if value is None or value is False or value in ('', [], {}):
        return ''
    if isinstance(value, dict):
        return f'`{" ".join(f"{name}={v}" for name, v in value.items())}`'
    return f'`{" ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in _values(value))}`'


def _values(value: Any) -> List[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def option_rows(group: type) -> Iterator[List[str]]:
    """Yield a row for each option of a group: flag, default, meaning, and what happens to a change on resuming."""
    for field in dataclasses.fields(group):
        of_option = field.metadata
        flag = ' '.join(filter(None, [flag_name(field.name), of_option['metavar']]))
        if typing.get_origin(_TYPES[field.name]) in (list, dict) or of_option['parsing'].get('action') is OneOrTwo:
            flag += ' ...'
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        words = [word for word in of_option['choices'] if word]
        meaning = of_option['help']
        if words and not all(word in meaning for word in words):
            meaning += f': {", ".join(words)}'
        yield [
            ', '.join(f'`{spelling}`' for spelling in (*of_option['also'], flag)),
            shown(default),
            meaning,
            '' if of_option['resume'] == TAKES_EFFECT else of_option['resume'].split(':')[0],
        ]


def recipe_rows() -> Iterator[List[str]]:
    """Yield a row for each option that the recipe of a method sets, with its value for each method."""
    names = dict.fromkeys(name for recipe in RECIPES.values() for name in recipe)
    for name in names:
        yield [f'`{flag_name(name)}`', *(
            (shown(recipe[name]) or 'none') if name in recipe else '' for recipe in RECIPES.values())]


def page() -> str:
    """Return the page for the options as the code has them."""
    parts = [HEAD]
    for group in GROUPS:
        header = ['Flag', 'Default', 'Meaning', 'A change when a run resumes']
        parts += [f'## {group.__doc__}\n', table(header, option_rows(group))]
    parts += ['## Defaults of each method\n', table(['Flag', *(f'`{name}`' for name in RECIPES)], recipe_rows())]
    return '\n'.join(parts)


if __name__ == '__main__':
    PAGE.write_text(page())
