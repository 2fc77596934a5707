"""A Python file as bytes: where each statement stands, what defines a name, and how text is replaced."""
import ast
import io
import tokenize
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from . import PatchsetError

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
FunctionNode = Union[ast.FunctionDef, ast.AsyncFunctionDef]

KINDS = {'function': Function, 'class': (ast.ClassDef,), 'assignment': (ast.Assign, ast.AnnAssign)}


class Source:
    """A parsed file. Lines count from 1, columns in UTF-8 bytes, as in `ast`; text is bytes without a last newline."""

    def __init__(self, data: bytes, path: str):
        self.data = data
        self.path = path
        self.tree = parse(data, path)
        self.lines = data.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.newline = b'\r\n' if self.lines and self.lines[0].endswith(b'\r\n') else b'\n'

    def offset(self, line: int, column: int = 0) -> int:
        return self.starts[line - 1] + column

    def end_offset(self, line: int) -> int:
        """Where the line's text ends, before its newline."""
        return self.starts[line - 1] + len(self.lines[line - 1].rstrip(b'\r\n'))

    def text(self, first: int, last: int) -> bytes:
        return self.data[self.offset(first):self.end_offset(last)] if first <= last else b''

    def segment(self, node: ast.AST) -> bytes:
        return self.data[self.offset(*start(node)):self.offset(node.end_lineno, node.end_col_offset)]

    def is_comment(self, line: int) -> bool:
        return self.lines[line - 1].lstrip().startswith(b'#')

    def is_blank(self, line: int) -> bool:
        return not self.lines[line - 1].strip()

    def indent(self, line: int) -> bytes:
        text = self.lines[line - 1]
        return text[:len(text) - len(text.lstrip())]

    def leading_line(self, node: ast.stmt) -> int:
        """First line of the node with the comments that stand right above it, at its own indentation."""
        line = first_line(node)
        while line > 1 and self.is_comment(line - 1) and self.indent(line - 1) == self.indent(first_line(node)):
            line -= 1
        return line

    def last_line(self, node: ast.stmt) -> int:
        """Last line of the node with the comments after its last statement, which are indented deeper than itself."""
        column = len(self.indent(first_line(node)))
        last = line = node.end_lineno
        while line < len(self.lines):
            line += 1
            if self.is_comment(line) and len(self.indent(line)) > column:
                last = line
            elif not self.is_blank(line):
                break
        return last

    def stands_alone(self, node: ast.stmt) -> bool:
        """Whether no other statement shares a line with the node."""
        before = self.data[self.offset(first_line(node)):self.offset(*start(node))]
        after = self.data[self.offset(node.end_lineno, node.end_col_offset):self.end_offset(node.end_lineno)].strip()
        return before.strip() in (b'', b'@') and (not after or after.startswith(b'#'))


def parse(data: bytes, path: str) -> ast.Module:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding != 'utf-8':
            raise PatchsetError(path, f'is encoded as {encoding}, only plain UTF-8 is woven')
        return ast.parse(data, path)
    except SyntaxError as error:
        raise PatchsetError(path, f'does not parse: {error.msg} (line {error.lineno or 1})') from None
    except ValueError as error:
        raise PatchsetError(path, f'does not parse: {error}') from None


def start(node: ast.stmt) -> Tuple[int, int]:
    """Line and column where the node's text starts, its first decorator's expression included."""
    decorators = getattr(node, 'decorator_list', None)
    first = decorators[0] if decorators else node
    return first.lineno, first.col_offset


def first_line(node: ast.stmt) -> int:
    return start(node)[0]


def docstring(body: List[ast.stmt]) -> List[ast.stmt]:
    """The docstring's statement in a list of its own, or an empty list."""
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return [first]
    return []


def is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is Ellipsis


def bound_name(node: ast.stmt) -> str:
    """The name that a plain assignment or annotation binds, '' for any other statement."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return ''


def with_newline(text: bytes, newline: bytes) -> bytes:
    return newline.join(text.splitlines())


def find(body: List[ast.stmt], name: str, where: str) -> Optional[ast.stmt]:
    """The one statement that defines the name, None if there is none."""
    found = [statement for statement in body if name in names_of(statement)]
    if len(found) > 1:
        raise PatchsetError(
            where, f'upstream defines it {len(found)} times (a setter or an overload?), which cannot be overlaid')
    if not found:
        if any(name in names_of(statement) for statement in conditional(body)):
            raise PatchsetError(where, 'upstream defines it under a condition, which cannot be overlaid')
        return None
    if isinstance(found[0], (ast.Import, ast.ImportFrom)):
        raise PatchsetError(where, 'upstream imports this name, choose another')
    return found[0]


def find_kind(body: List[ast.stmt], name: str, kind: str, where: str) -> Optional[ast.stmt]:
    """As `find`, the definition must be of that kind: 'function', 'class' or 'assignment'."""
    node = find(body, name, where)
    if node is not None and not (isinstance(node, KINDS[kind]) and (kind != 'assignment' or bound_name(node))):
        raise PatchsetError(where, f'is not a plain {kind} upstream (line {node.lineno})')
    return node


def names_of(statement: ast.stmt) -> List[str]:
    """Names that a statement itself binds, those of its nested statements aside."""
    if isinstance(statement, Function + (ast.ClassDef,)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split('.')[0] for alias in statement.names]
    targets = getattr(statement, 'targets', None) or [getattr(statement, 'target', None)]
    return [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]


def conditional(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements nested in `if`, `try`, `with` and loops, which run in the same scope."""
    for statement in body:
        if isinstance(statement, Function + (ast.ClassDef,)):
            continue
        for field in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
            nested = getattr(statement, field, [])
            yield from nested
            yield from conditional(nested)


class Edit(NamedTuple):
    """Replace the bytes from `start` to `end`."""
    start: int
    end: int
    text: bytes


def apply_edits(data: bytes, edits: Iterable[Edit]) -> bytes:
    """Every byte outside the edits stays. Edits at the same place keep the order in which they come."""
    pieces, position = [], 0
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if edit.start < position:
            raise AssertionError(f'overlapping edits at byte {edit.start}')
        pieces += [data[position:edit.start], edit.text]
        position = edit.end
    return b''.join(pieces + [data[position:]])
