"""Commands in the documentation: in its blocks of a shell, in its text, and in the heads of recipes and scripts."""
import ast
import re
import shlex
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

from pages import PAGES, ROOT, blocks

PULL_REQUEST = ROOT / 'patchset' / 'texts' / 'cover.md'
SCRIPTS = [ROOT / name for name in (
    'train.py', 'validate.py', 'class_weights.py', 'examples/digits.py', 'examples/digits_resnet.py',
    'examples/maskfeat.py', 'timm/mim/convert/__init__.py')]
RECIPES = sorted((ROOT / 'recipes').glob('*.yaml'))

_COMMAND = r'(?:python|torchrun|make|pytest|pip|uv|git) '
_SPAN = re.compile(rf'`({_COMMAND}[^`]+)`')
_HEAD_LINE = re.compile(rf'^#? {{3,}}({_COMMAND}.*?)(?: {{3,}}\(.*\))?$', re.MULTILINE)


class Command(NamedTuple):
    """A command, and where it stands first."""
    words: Tuple[str, ...]
    place: str

    def __str__(self) -> str:
        return shlex.join(self.words)


def documented_commands() -> List[Command]:
    """Every command once, page by page, in the order of the page."""
    found: Dict[Tuple[str, ...], str] = {}
    for place, line in _lines():
        words = tuple(shlex.split(line, comments=True))
        if words:
            found.setdefault(words, place)
    return [Command(words, place) for words, place in found.items()]


def _lines() -> Iterator[Tuple[str, str]]:
    for page in (*PAGES, PULL_REQUEST):
        text, shell_blocks = page.read_text(), blocks(page, 'bash', 'sh', 'shell', 'console')
        for block in shell_blocks:
            for line in block.code.replace('\\\n', ' ').splitlines():
                yield block.place, line
        for block in blocks(page):
            text = text.replace(block.code, '\n' * block.code.count('\n'))
        for match in _SPAN.finditer(text):
            yield f'{page.name}:{text[:match.start()].count(chr(10)) + 1}', match[1].replace('\\|', '|')
    for file in (*SCRIPTS, *RECIPES):
        for match in _HEAD_LINE.finditer(_head(file)):
            yield file.name, match[1]


def _head(file: Path) -> str:
    text = file.read_text()
    if file.suffix == '.py':
        return ast.get_docstring(ast.parse(text), clean=False)
    return re.match(r'(#.*\n)*', text)[0]
