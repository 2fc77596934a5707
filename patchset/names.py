"""The names of a woven module: an overlay's imports join upstream's, and every name that is read has to be defined.

A cut can part a name from the statement that binds it, which only fails when the model runs. So the weave refuses it.
"""
import ast
import builtins
import re
import sys
from typing import Iterable, List, Optional, Set, Tuple

from . import PatchsetError
from .overlay import Overlay, moved_from_decorators
from .plan import Change, Plan, ScopePlan
from .source import Edit, Function, FunctionNode, Source, docstring, is_ellipsis, names_of, with_newline

LINE_LENGTH = 120
Import = (ast.Import, ast.ImportFrom)
ORDER = ('__future__', 'standard library', 'third party', 'timm', 'relative')

ALWAYS = set(dir(builtins)) | {'__file__', '__class__', '__annotations__', '__path__'}
Scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Loops = (ast.For, ast.AsyncFor, ast.While)


def import_edits(upstream: Source, overlay: Overlay) -> List[Edit]:
    edits = []
    theirs = [statement for statement in upstream.tree.body if isinstance(statement, Import)]
    for ours in overlay.imports:
        missing = [alias for alias in ours.names if spelled(alias) not in imported(ours, theirs)]
        if not missing:
            continue
        check_unused(missing, upstream, overlay)
        same = [t for t in theirs if same_module(ours, t) and t.names[0].name != '*']
        if same:
            edits += join_names(upstream, same[0], sorted(spelled(alias) for alias in missing))
        else:
            edits.append(insert_import(upstream, overlay, ours, missing, theirs))
    return edits


def same_module(ours: ast.stmt, theirs: ast.stmt) -> bool:
    both = isinstance(ours, ast.ImportFrom) and isinstance(theirs, ast.ImportFrom)
    return both and module_key(ours) == module_key(theirs)


def imported(ours: ast.stmt, theirs: List[ast.stmt]) -> Set[str]:
    """What upstream imports at the top level in the same way: from that module, or as modules."""
    alike = [t for t in theirs if same_module(ours, t) or isinstance(ours, ast.Import) and isinstance(t, ast.Import)]
    return {spelled(alias) for t in alike for alias in t.names}


def check_unused(aliases: List[ast.alias], upstream: Source, overlay: Overlay) -> None:
    """An import must not change what a name of upstream's module means."""
    for alias in aliases:
        name = alias.asname or alias.name.split('.')[0]
        clash = [s for s in upstream.tree.body if name in names_of(s)]
        if clash and not (isinstance(clash[0], ast.Import) and not alias.asname and '.' in alias.name):
            raise PatchsetError(
                overlay.source.path, f"imports '{name}', a name that upstream defines itself (line {clash[0].lineno})")


def module_key(statement: ast.stmt) -> str:
    """What an import is sorted by: '.layers', 'torch.nn'."""
    if isinstance(statement, ast.ImportFrom):
        return '.' * statement.level + (statement.module or '')
    return statement.names[0].name


def spelled(alias: ast.alias) -> str:
    return f'{alias.name} as {alias.asname}' if alias.asname else alias.name


def join_names(upstream: Source, statement: ast.ImportFrom, names: List[str]) -> List[Edit]:
    """Further names in the manner of the statement: one per line, or filling lines; sorted where upstream sorts."""
    aliases = statement.names
    present = [spelled(alias) for alias in aliases]
    last = [name for name in names if name > present[-1] or present != sorted(present)]
    edits = names_after(upstream, statement, last) if last else []
    for name in names:
        if name not in last:
            following = next(alias for alias in aliases if spelled(alias) > name)
            start = upstream.offset(following.lineno, following.col_offset)
            indent = upstream.newline + upstream.indent(following.lineno)
            gap = indent if one_per_line(upstream, aliases) else b' '
            edits.append(Edit(start, start, name.encode() + b',' + gap))
    return edits


def one_per_line(upstream: Source, aliases: List[ast.alias]) -> bool:
    alone = all(not upstream.lines[alias.lineno - 1][:alias.col_offset].strip() for alias in aliases)
    return alone and len({alias.lineno for alias in aliases}) == len(aliases)


def names_after(upstream: Source, statement: ast.ImportFrom, names: List[str]) -> List[Edit]:
    last, newline = statement.names[-1], upstream.newline
    end, line_end = upstream.offset(last.end_lineno, last.end_col_offset), upstream.end_offset(last.end_lineno)
    indent = upstream.indent(last.lineno) if last.lineno > statement.lineno else b'    '
    tail = re.fullmatch(rb'(,?)\s*(#.*)?', upstream.data[end:line_end])
    encoded = [name.encode() for name in names]
    if one_per_line(upstream, statement.names) and tail:
        # after the line's comment, with a last comma if there was one
        lines = b','.join(newline + indent + name for name in encoded) + tail[1]
        return ([] if tail[1] else [Edit(end, end, b',')]) + [Edit(line_end, line_end, lines)]
    wrap = (b',' if b'(' in upstream.segment(statement) else b', \\') + newline + indent
    text, width = b'', last.end_col_offset
    for name in encoded:
        fits = not one_per_line(upstream, statement.names) and width + len(name) + 4 <= LINE_LENGTH
        text += (b', ' if fits else wrap) + name
        width = (width + 2 if fits else len(indent)) + len(name)
    return [Edit(end, end, text)]


def insert_import(
        upstream: Source,
        overlay: Overlay,
        ours: ast.stmt,
        missing: List[ast.alias],
        theirs: List[ast.stmt],
) -> Edit:
    if isinstance(ours, ast.Import):
        text = b'import ' + ', '.join(spelled(alias) for alias in missing).encode()
    else:
        text = with_newline(overlay.source.segment(ours), upstream.newline)
    newline = upstream.newline
    before, after = neighbours(ours, theirs)
    if before is not None:
        end = upstream.end_offset(before.end_lineno)
        return Edit(end, end, newline + text)
    if after is not None:
        start = upstream.offset(after.lineno)
        return Edit(start, start, text + newline)
    return insert_alone(upstream, ours, text, theirs)


def neighbours(ours: ast.stmt, theirs: List[ast.stmt]) -> Tuple[Optional[ast.stmt], Optional[ast.stmt]]:
    """The import that ours follows in alphabetical order, among those of its kind, and the one that it precedes."""
    kind = [t for t in theirs if import_kind(t) == import_kind(ours)]
    alike = [t for t in kind if type(t) is type(ours)] or kind
    key = module_key(ours)
    before = [t for t in alike if module_key(t) <= key]
    after = [t for t in alike if module_key(t) > key]
    return max(before, key=module_key, default=None), min(after, key=module_key, default=None)


def import_kind(statement: ast.stmt) -> str:
    """The block in which an import stands: future, standard library, third party, own package, relative."""
    key = module_key(statement)
    top = key.split('.')[0]
    if not top:
        return 'relative'
    if top in ('__future__', 'timm'):
        return top
    return 'standard library' if top in sys.stdlib_module_names else 'third party'


def insert_alone(upstream: Source, ours: ast.stmt, text: bytes, theirs: List[ast.stmt]) -> Edit:
    """The first import of its kind: after the imports of the kinds before it, else after the docstring."""
    rank = ORDER.index(import_kind(ours))
    earlier = [t for t in theirs if ORDER.index(import_kind(t)) < rank]
    newline = upstream.newline
    if earlier or docstring(upstream.tree.body):
        last = (earlier or docstring(upstream.tree.body))[-1]
        together = not earlier or stand_together(last, ours)
        blank_follows = last.end_lineno == len(upstream.lines) or upstream.is_blank(last.end_lineno + 1)
        end = upstream.end_offset(last.end_lineno)
        return Edit(end, end, newline * (1 if together else 2) + text + newline * (not together and not blank_follows))
    body = upstream.tree.body
    if not body:
        return Edit(len(upstream.data), len(upstream.data), text + newline)
    start = upstream.offset(upstream.leading_line(body[0]))
    gap = 1 if isinstance(body[0], Import) and stand_together(body[0], ours) else 2
    return Edit(start, start, text + gap * newline)


def stand_together(one: ast.stmt, other: ast.stmt) -> bool:
    """Whether no blank line parts two imports of different kinds."""
    return {import_kind(one), import_kind(other)} == {'timm', 'relative'}


def check_names(plan: Plan, woven: ast.Module) -> None:
    """Args:
        woven: The woven module, for the names that it defines and imports.
    """
    known = bindings(woven.body) | ALWAYS
    for scope in plan.scopes:
        members = set()
        if scope.node is not None:
            members = bindings(scope.body) | bindings(scope.item.node.body)
            require(read_outside(class_header(scope.item.node)), known, scope.where.rstrip(': .'))
        for change in scope.changes:
            where = f'{scope.where}{change.item.name}'
            if change.kind == 'part':
                check_signature(change.item.node, known | members, where)
                check_part(scope, change, known, where)
            elif change.kind not in ('class', 'removed'):
                check_statement(change.item.node, known, members, where)


def check_statement(node: ast.stmt, known: Set[str], members: Set[str], where: str) -> None:
    """What the overlay wrote itself reads only names that the module or, outside of functions, the class defines."""
    if isinstance(node, Function):
        check_signature(node, known | members, where)
        require(Flow.of(node, node.body).outside, known, where)
    elif isinstance(node, ast.ClassDef):
        require(read_outside(class_header(node)), known, where)
        for member in node.body:
            check_statement(member, known, bindings(node.body), f'{where}.{getattr(member, "name", "")}'.rstrip('.'))
    else:
        require(read_outside([node]), known | members | bindings([node]), where)


def check_signature(node: FunctionNode, known: Set[str], where: str) -> None:
    decorators = [decorator for decorator in node.decorator_list if decorator not in moved_from_decorators(node)]
    annotations = [argument.annotation for argument in all_arguments(node)] + [node.returns]
    defaults = node.args.defaults + node.args.kw_defaults
    require(read_outside(filter(None, decorators + annotations + defaults)), known, where)


def class_header(node: ast.ClassDef) -> List[ast.AST]:
    return node.decorator_list + node.bases + [keyword.value for keyword in node.keywords]


def check_part(scope: ScopePlan, change: Change, known: Set[str], where: str) -> None:
    """A moved statement may use what its new method has bound before it, never a local that stayed behind."""
    node, split = change.item.node, scope.splits[change.item.moved.source]
    moved = split.moved(scope.part(change.item))
    place = next(i for i, statement in enumerate(node.body) if is_ellipsis(statement))
    flow = Flow.of(node, node.body[:place] + moved + node.body[place + 1:])
    theirs = {id(below) for statement in moved for below in ast.walk(statement)}
    left_behind = bindings(split.source.body) | {argument.arg for argument in all_arguments(split.source)}
    lost = flow.unbound + [(name, use) for name, use in flow.outside if name in left_behind and id(use) in theirs]
    for name, use in lost:
        file = 'upstream' if id(use) in theirs else 'the overlay'
        raise PatchsetError(
            where,
            f"uses '{name}' (line {use.lineno} of {file}), "
            f'which is not bound there after the cut of {split.source.name}',
        )
    require(flow.outside, known, where)


def require(reads: List[Tuple[str, ast.AST]], known: Set[str], where: str) -> None:
    for name, _ in reads:
        if name not in known and '*' not in known:
            raise PatchsetError(where, f"uses '{name}', which the module neither defines nor imports")


def read_outside(nodes: Iterable[ast.AST]) -> List[Tuple[str, ast.AST]]:
    flow = Flow(set(), set())
    for node in nodes:
        flow.visit(node)
    return flow.outside


def all_arguments(node: ast.AST) -> List[ast.arg]:
    arguments = node.args
    named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    return named + [argument for argument in (arguments.vararg, arguments.kwarg) if argument]


def bindings(statements: Iterable[ast.AST]) -> Set[str]:
    """Names that statements bind in their own scope, in whatever order."""
    found: Set[str] = set()
    for node in statements:
        found |= bindings_of(node)
        if isinstance(node, Comprehensions):
            found |= {walrus.target.id for walrus in ast.walk(node) if isinstance(walrus, ast.NamedExpr)}
        elif not isinstance(node, Scopes + (ast.ClassDef,)):
            found |= bindings(ast.iter_child_nodes(node))
    return found


def bindings_of(node: ast.AST) -> Set[str]:
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, ast.alias):
        return {node.asname or node.name.split('.')[0]}
    names = [getattr(node, key, None) for key in ('name', 'rest')]
    return {name for name in names if isinstance(name, str)}


class Flow(ast.NodeVisitor):
    """Walks statements in the order in which they run, and notes reads of names that cannot be bound yet.

    A name counts as bound after any statement that may bind it, so that what is noted is wrong on every path.

    Attributes:
        unbound: Reads of a local before anything binds it.
        outside: Reads of names that are not local.
    """

    def __init__(self, bound: Set[str], local: Set[str]):
        self.bound = set(bound)
        self.local = local
        self.unbound: List[Tuple[str, ast.AST]] = []
        self.outside: List[Tuple[str, ast.AST]] = []

    @classmethod
    def of(cls, function: ast.AST, body: List[ast.AST]) -> 'Flow':
        """The flow of a function that has another body."""
        arguments = {argument.arg for argument in all_arguments(function)}
        shared = {n for s in body for g in ast.walk(s) if isinstance(g, (ast.Global, ast.Nonlocal)) for n in g.names}
        flow = cls(arguments, (arguments | bindings(body)) - shared)
        for statement in body[len(docstring(body)):]:
            flow.visit(statement)
        return flow

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        elif node.id not in self.local:
            self.outside.append((node.id, node))
        elif node.id not in self.bound:
            self.unbound.append((node.id, node))
        if isinstance(node.ctx, ast.Del):
            self.bound.discard(node.id)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, Loops):
            # a later round sees what an earlier one bound
            self.visit_fields(node, ('iter',))
            self.bound |= bindings(node.body)
            self.visit_fields(node, ('target', 'test', 'body', 'orelse'))
        elif isinstance(node, Comprehensions):
            self.visit_generators(node)
        elif isinstance(node, Scopes):
            self.visit_function(node)
        else:
            # values are read before targets are bound
            self.visit_fields(node, [f for f in node._fields if f == 'value'])
            self.visit_fields(node, [f for f in node._fields if f != 'value'])
            self.bound |= bindings_of(node)

    def visit_fields(self, node: ast.AST, fields: Iterable[str]) -> None:
        for name in fields:
            value = getattr(node, name, None)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.visit_Name(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)
            self.visit(node.target)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.bound |= bindings_of(node)
        self.visit_fields(node, node._fields)

    def visit_match_case(self, node: ast.AST) -> None:
        self.bound |= bindings([node.pattern])
        self.visit_fields(node, node._fields)

    def visit_generators(self, node: ast.AST) -> None:
        targets = bindings([generator.target for generator in node.generators])
        self.visit(node.generators[0].iter)
        bound, local = self.bound, self.local
        self.bound, self.local = bound | targets, local | targets
        self.visit_fields(node, node._fields)
        self.bound, self.local = (self.bound - targets) | (bound & targets), local

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_fields(node, ('decorator_list', 'bases', 'keywords'))
        self.bound.add(node.name)

    def visit_function(self, node: ast.AST) -> None:
        """A function inside runs later, when all locals may be bound; what it reads outside counts as read here."""
        self.visit_fields(node, ('decorator_list', 'args'))
        self.bound |= bindings_of(node)
        body = node.body if isinstance(node.body, list) else [node.body]
        inner = Flow.of(node, body)
        self.outside += [(name, use) for name, use in inner.outside if name not in self.local]
