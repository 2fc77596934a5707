"""Gives upstream's own training script the flags of masked image modeling, and hands over where `--mim` is given."""
import ast
from typing import List

from .anchors import find_anchor
from .edits import Edit, apply_edits
from .errors import PatchsetError
from .imports import import_edits
from .overlay import HEADER, Overlay
from .scope import find_kind
from .source import Source

PATH = 'train.py'
IMPORT = HEADER + b' of the training script.\nfrom timm.mim import pretrain\n'
FLAGS = b'\n\n# Masked image modeling parameters\npretrain.add_arguments(parser)'
PARSED = 'args, args_text = _parse_args()'
HAND_OVER = b'''
    if args.mim:
        pretrain.run(pretrain.given_arguments(parser))
        return'''


def hand_over(script: bytes) -> bytes:
    """Args:
        script: Upstream's train.py.
    """
    source = Source(script, PATH)
    imports = import_edits(source, Overlay(IMPORT, PATH))
    if not imports:
        raise PatchsetError(PATH, 'imports timm.mim already')
    return apply_edits(script, imports + [
        insert_after(source, last_argument(source), FLAGS),
        insert_after(source, parsed(source), HAND_OVER),
    ])


def insert_after(source: Source, statement: ast.stmt, text: bytes) -> Edit:
    end = source.end_offset(statement.end_lineno)
    return Edit(end, end, text.replace(b'\n', source.newline))


def last_argument(source: Source) -> ast.stmt:
    """The last flag, right before the function that parses."""
    body = source.tree.body
    function = function_of(body, '_parse_args')
    before = body[body.index(function) - 1]
    call = getattr(before, 'value', None)
    if not isinstance(call, ast.Call) or getattr(call.func, 'attr', '') != 'add_argument':
        raise PatchsetError(PATH, 'upstream has no add_argument call right before _parse_args, where --mim would go')
    return before


def parsed(source: Source) -> ast.stmt:
    statements = function_of(source.tree.body, 'main').body
    return statements[find_anchor(PARSED, statements, f'{PATH}: main')]


def function_of(body: List[ast.stmt], name: str) -> ast.stmt:
    function = find_kind(body, name, 'function', f'{PATH}: {name}')
    if function is None:
        raise PatchsetError(f'{PATH}: {name}', 'upstream has no such function')
    return function
