"""Pages of the documentation and the blocks of code in them."""
import re
from pathlib import Path
from typing import List, NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / 'hfdocs' / 'source'
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), *sorted(SOURCE.rglob('*.mdx'))]

_FENCE = re.compile(r'^ {0,3}(`{3,})(\w*)[^`\n]*\n(.*?)^ {0,3}\1[ ]*$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: File that it is in.
        line: Line of its first line of code, from 1.
        language: What its fence says.
        code: Text between the fences.
    """
    page: Path
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f'{self.page.name}:{self.line}'


def blocks(page: Path, *languages: str) -> List[Block]:
    """Blocks of a page in some languages, all of them if none is named."""
    text = page.read_text()
    found = (
        Block(page, text[:match.start(3)].count('\n') + 1, match[2], match[3]) for match in _FENCE.finditer(text))
    return [block for block in found if not languages or block.language in languages]


def run(block: Block, namespace: dict) -> None:
    """Run a block of Python; an error's traceback names the line of the page."""
    lines_before = '\n' * (block.line - 1)
    exec(compile(lines_before + block.code, str(block.page), 'exec'), namespace)
