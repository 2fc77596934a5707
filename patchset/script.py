"""Gives upstream's own scripts the flags of masked image modeling, and hands over where `--mim` is given."""
import ast
from typing import NamedTuple

from .anchors import find_anchor
from .edits import Edit, apply_edits
from .errors import PatchsetError
from .imports import import_edits
from .overlay import HEADER, Overlay
from .scope import find_kind
from .source import Source


class Script(NamedTuple):
    """Where a script of upstream's is changed, and into what.

    Attributes:
        imports: What is imported.
        add_arguments: The call that adds the flags.
        after_flags: The function that follows upon the last flag.
        parsed: The statement in `main` that parses the command line.
        run: The call that takes over.
    """
    imports: str
    add_arguments: str
    after_flags: str
    parsed: str
    run: str


SCRIPTS = {
    'train.py': Script(
        'from timm.mim import pretrain', 'pretrain.add_arguments(parser)', '_parse_args',
        'args, args_text = _parse_args()', 'pretrain.run(pretrain.given_arguments(parser))'),
    'validate.py': Script(
        'from timm.mim.pretrain import given_arguments, validate as pretraining', 'pretraining.add_arguments(parser)',
        'validate', 'args = parser.parse_args()', 'pretraining.run(given_arguments(parser))'),
}


def hand_over(data: bytes, path: str) -> bytes:
    """Args:
        data: Upstream's script.
        path: Which one it is.
    """
    script, source = SCRIPTS[path], Source(data, path)
    imports = import_edits(source, Overlay(HEADER + f' of a script.\n{script.imports}\n'.encode(), path))
    if not imports:
        raise PatchsetError(path, 'imports timm.mim already')
    flags = f'\n\n# Masked image modeling parameters\n{script.add_arguments}'
    taken_over = f'\n    if args.mim:\n        {script.run}\n        return'
    return apply_edits(data, imports + [
        insert_after(source, last_argument(source, script.after_flags), flags),
        insert_after(source, parsed(source, script.parsed), taken_over),
    ])


def insert_after(source: Source, statement: ast.stmt, text: str) -> Edit:
    end = source.end_offset(statement.end_lineno)
    return Edit(end, end, text.encode().replace(b'\n', source.newline))


def last_argument(source: Source, function: str) -> ast.stmt:
    """The last flag, right before a function."""
    body = source.tree.body
    before = body[body.index(function_of(source, function)) - 1]
    call = getattr(before, 'value', None)
    if not isinstance(call, ast.Call) or getattr(call.func, 'attr', '') != 'add_argument':
        raise PatchsetError(
            source.path, f'upstream has no add_argument call right before {function}, where --mim would go')
    return before


def parsed(source: Source, statement: str) -> ast.stmt:
    statements = function_of(source, 'main').body
    return statements[find_anchor(statement, statements, f'{source.path}: main')]


def function_of(source: Source, name: str) -> ast.stmt:
    function = find_kind(source.tree.body, name, 'function', f'{source.path}: {name}')
    if function is None:
        raise PatchsetError(f'{source.path}: {name}', 'upstream has no such function')
    return function
