"""What weaving knows of the protocol in `timm/models/_embed_stages.py`: its names, and what `forward_features` becomes.

`forward_features` keeps upstream's header in every class; its body becomes the composition of the two halves. The other
names are the fork's: where upstream defines one itself, in a class or on `self`, weaving refuses.
"""
import ast
import re
from typing import Dict, Iterator, List, Mapping, NamedTuple, Set, Tuple

from . import PatchsetError
from .overlay import Item
from .source import Function, FunctionNode, Source, conditional, docstring, first_line, names_of

MIXIN = 'EmbedStagesMixin'
WHOLE, EMBED, STAGES = 'forward_features', 'embed', 'forward_stages'
NAMES = {
    EMBED, STAGES, 'embed_patches', 'embed_positions', 'patch_dim', 'patch_grid', 'keep_grid', 'grid_format',
    'map_tokens', 'keep_tokens', 'features_to_map',
}
WORDS = re.compile(rf'\b(?:{"|".join(sorted(NAMES))})\b'.encode())
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


class Taken(NamedTuple):
    """A name of the protocol that upstream defines.

    Attributes:
        class_name: The class of upstream that does so.
        name: The name, with 'self.' where it is an attribute of the model.
        line: The line.
    """
    class_name: str
    name: str
    line: int


def taken_names(module: ast.Module, served: Mapping[str, Set[str]]) -> Iterator[Taken]:
    """Names of the protocol that upstream defines in classes that have it, their bases and their subclasses.

    Args:
        module: A module of upstream.
        served: Classes that have the protocol by the name that they have in the module, and for each the names that the
            overlay says how to treat.
    """
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for node in family(classes, set(served)):
        for statement in node.body + list(conditional(node.body)):
            for name in NAMES.intersection(names_of(statement)) - served.get(node.name, set()):
                yield Taken(node.name, name, statement.lineno)
            if isinstance(statement, Function):
                yield from (Taken(node.name, f'self.{name}', line) for name, line in set_on_self(statement))


def family(classes: Mapping[str, ast.ClassDef], served: Set[str]) -> List[ast.ClassDef]:
    """Classes of the module that are served, or related to one that is."""
    bases = {name: {base.id for base in node.bases if isinstance(base, ast.Name)} for name, node in classes.items()}
    up, down = set(served), set(served)
    for _ in classes:
        up |= {base for name in up & set(classes) for base in bases[name]}
        down |= {name for name in classes if bases[name] & down}
    return [node for name, node in classes.items() if name in up | down]


def set_on_self(function: FunctionNode) -> Iterator[Tuple[str, int]]:
    """Names of the protocol that a method sets on its first argument: assigned, registered or by `setattr`."""
    arguments = function.args.posonlyargs + function.args.args
    own = arguments[0].arg if arguments else ''
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            if node.attr in NAMES and getattr(node.value, 'id', None) == own:
                yield node.attr, node.lineno
        elif isinstance(node, ast.Call):
            yield from ((name, node.lineno) for name in registered(node, own))


def registered(call: ast.Call, own: str) -> Set[str]:
    """Names in `self.register_buffer(name, ...)`, `self.add_module(name, ...)`, `setattr(self, name, ...)`."""
    function, texts = call.func, [a.value for a in call.args[:2] if isinstance(a, ast.Constant)]
    method = getattr(function, 'attr', '')
    on_self = getattr(getattr(function, 'value', None), 'id', None) == own
    if on_self and re.fullmatch(r'register_(buffer|parameter|module)|add_module', method):
        texts = texts[:1]
    elif not (getattr(function, 'id', '') == 'setattr' and call.args and getattr(call.args[0], 'id', None) == own):
        return set()
    return NAMES.intersection(text for text in texts if isinstance(text, str))


def served_classes(module: ast.Module) -> Dict[str, Set[str]]:
    """The classes that an overlay gives the protocol, and the names of it that the overlay itself defines there."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef) and any(getattr(base, 'id', None) == MIXIN for base in node.bases):
            found[node.name] = NAMES.intersection(name for statement in node.body for name in names_of(statement))
    return found


def check_free(upstream: Source, served: Mapping[str, Set[str]], path: str) -> None:
    if not WORDS.search(upstream.data):
        return
    for class_name, name, line in taken_names(upstream.tree, served):
        raise PatchsetError(
            f'{path}: {class_name}.{name}',
            f'upstream defines this name of the protocol itself (line {line}): the overlay has to say which one stands')


def imported_classes(module: ast.Module, path: str, served: Mapping[str, Set[str]]) -> Dict[str, Set[str]]:
    """Served classes of other modules, by the name under which a module imports them.

    Args:
        served: For each module, by its path, the names of its classes that have the protocol.
    """
    found = {}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            folder = path.rsplit('/', node.level)[0] + '/' if node.level else ''
            classes = served.get(f"{folder}{node.module.replace('.', '/')}.py", set())
            found.update({alias.asname or alias.name: set() for alias in node.names if alias.name in classes})
    return found
