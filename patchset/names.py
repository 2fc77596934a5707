"""Are the names that woven functions use there? A cut can part a name from the statement that binds it."""
import ast
import builtins
from typing import Iterable, List, Set, Tuple

from .errors import PatchsetError
from .overlay import moved_from_decorators
from .plan import Change, Plan, ScopePlan
from .source import Function, FunctionNode, docstring, is_ellipsis

ALWAYS = set(dir(builtins)) | {'__file__', '__class__', '__annotations__', '__path__'}
Scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Loops = (ast.For, ast.AsyncFor, ast.While)


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
