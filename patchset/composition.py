"""`forward_features` keeps upstream's header in every class; its body becomes the composition of the two halves."""
import ast
from typing import Dict, List, Tuple

from .errors import PatchsetError
from .overlay import Item
from .source import FunctionNode, Source, docstring, first_line

WHOLE, EMBED, STAGES = 'forward_features', 'embed', 'forward_stages'
LINE_LENGTH = 120


def check_whole(item: Item, theirs: FunctionNode, where: str) -> None:
    """A `forward_features` that an overlay writes itself must have upstream's arguments, decorators and docstring."""
    for what, of in (('arguments', signature), ('decorators', decorators), ('docstring', ast.get_docstring)):
        if of(item.node) != of(theirs):
            raise PatchsetError(where, f"must keep upstream's {what} (line {theirs.lineno} of upstream)")


def signature(node: FunctionNode) -> Tuple[str, str]:
    return ast.dump(node.args), ast.dump(node.returns) if node.returns else ''


def decorators(node: FunctionNode) -> List[str]:
    return [ast.dump(decorator) for decorator in node.decorator_list]


def compose(whole: FunctionNode, halves: Dict[str, FunctionNode], where: str) -> List[str]:
    """The statements of the body, without indentation: every argument goes on to the half that takes it by name.

    Args:
        whole: Upstream's `forward_features`.
        halves: What the overlay's class defines of `embed` and `forward_stages`; `embed` may be the mixin's.
    """
    if STAGES not in halves:
        raise PatchsetError(where, f"is split, but no '{STAGES}' takes what follows the embedding")
    arguments = whole.args
    if arguments.vararg or arguments.kwarg or arguments.posonlyargs or not arguments.args[1:]:
        raise PatchsetError(where, f'upstream takes ({ast.unparse(arguments)}), which cannot be handed on: write the '
                                   "method in the overlay, with upstream's arguments")
    image, others = arguments.args[1].arg, [a.arg for a in arguments.args[2:] + arguments.kwonlyargs]
    taken = {name: hand_on(name, half, whole, where) for name, half in halves.items()}
    for name in others:
        if not any(name in names for names in taken.values()):
            raise PatchsetError(where, f"upstream takes '{name}', which neither {EMBED} nor {STAGES} does")
    embedded = f'self.{EMBED}({", ".join([image] + keywords(taken.get(EMBED, [])))})'
    rest = ''.join(f', {keyword}' for keyword in keywords(taken[STAGES]))
    line = f'return self.{STAGES}({embedded}{rest})'
    if len(line) + 8 <= LINE_LENGTH:
        return [line]
    return [f'embedded = {embedded}', f'return self.{STAGES}(embedded{rest})']


def keywords(names: List[str]) -> List[str]:
    return [f'{name}={name}' for name in names]


def hand_on(name: str, half: FunctionNode, whole: FunctionNode, where: str) -> List[str]:
    """Arguments that a half takes besides its first one; they are arguments of the whole, with its defaults."""
    ours, theirs = defaults(half), defaults(whole)
    image = whole.args.args[1].arg
    names = [argument for argument in list(ours)[1:] if argument in theirs and argument != image]
    for argument in list(ours)[1:]:
        if argument not in names and ours[argument] is None:
            raise PatchsetError(where, f"{name} needs '{argument}', which upstream's {whole.name} does not take")
    for argument in names:
        if ours[argument] != theirs[argument]:
            raise PatchsetError(where, f"the default of '{argument}' is another in {name} than upstream's")
    return names


def defaults(node: FunctionNode) -> Dict[str, str]:
    """Arguments after `self` and their defaults as code, None for those without."""
    positional = node.args.posonlyargs + node.args.args
    values = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    pairs = zip(positional + node.args.kwonlyargs, values)
    return {argument.arg: value and ast.dump(value) for argument, value in list(pairs)[1:]}


def render_whole(upstream: Source, whole: FunctionNode, body: List[str]) -> bytes:
    """Upstream's header and docstring, byte for byte, and the new body."""
    first = whole.body[0]
    last = first.end_lineno if docstring(whole.body) else first_line(first) - 1
    while upstream.is_comment(last) or upstream.is_blank(last):
        last -= 1
    header = upstream.text(first_line(whole), last)
    indent = upstream.indent(first_line(first))
    return upstream.newline.join([header] + [indent + line.encode() for line in body])
