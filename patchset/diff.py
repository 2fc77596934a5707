"""The patch between upstream and the woven tree, in git's format."""
import difflib
import io
from typing import Iterator, List, Optional

from .tree import Tree


def diff_tree(tree: Tree) -> Iterator[str]:
    """One text per file, without the notices."""
    for path in sorted(tree.changed):
        text = diff_file(tree.stock.get(path), tree.changed[path], path)
        if text:
            yield text


def diff_file(old: Optional[bytes], new: bytes, path: str) -> str:
    if old == new:
        return ''
    header = f'diff --git a/{path} b/{path}\n' + ('new file mode 100644\n' if old is None else '')
    before = '/dev/null' if old is None else f'a/{path}'
    hunks = difflib.unified_diff(as_lines(old or b''), as_lines(new), before, f'b/{path}')
    unfinished = '\n\\ No newline at end of file\n'
    return header + ''.join(line if line.endswith('\n') else line + unfinished for line in hunks)


def as_lines(data: bytes) -> List[str]:
    """Lines as `diff` counts them, whatever their bytes."""
    return [line.decode(errors='surrogateescape') for line in io.BytesIO(data)]


def summary(texts: List[str]) -> str:
    # what precedes the first hunk is the header
    lines = [line for text in texts for line in text[text.find('\n@@'):].split('\n')]
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in '+-')
    new = sum('\nnew file mode' in text[:text.find('\n@@')] for text in texts)
    return f'{len(texts)} files ({new} new), {added} lines added, {removed} removed'
