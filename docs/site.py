"""Build the documentation as a site: `make docs`, then open `build/site/index.html`.

The pages are those that people read in the repository: README.md, docs/ and hfdocs/source. This program copies them to
`build/pages`, rewrites what MkDocs spells differently, and runs MkDocs, which stops at any link that leads nowhere.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / 'build' / 'pages'
SOURCES = ('README.md', 'CONTRIBUTING.md', 'docs/*.md', 'hfdocs/source/**/*.mdx')
PICTURES = ('hfdocs/source/images/*.png', 'benchmarks/results/**/*.png')

_LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)')
_AUTODOC = re.compile(r'^\[\[autodoc\]\] ([\w.]+)\n((?: {4}- \w+\n)*)', re.MULTILINE)


def sources() -> list:
    """Return the pages of the site, as paths in the repository."""
    return [path.relative_to(ROOT) for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]


def page_of(source: Path) -> Path:
    """Return where the site has the page that is made of a file."""
    return Path('index.md') if source == Path('README.md') else source.with_suffix('.md')


def rewrite(text: str, source: Path) -> str:
    """Rewrite a page for MkDocs.

    Args:
        text: Text of the page.
        source: Path of the page in the repository, which its links are relative to.

    Returns:
        The text, in which links lead to pages of the site, a link to another file of the repository is the name of that
        file, and the reference of a function or class is in the words of mkdocstrings.
    """
    pages = sources()

    def link(match: re.Match) -> str:
        picture, label, target, anchor = match[1], match[2], match[3], match[4] or ''
        path = Path(source.parent, target)
        path = Path(*_without_parents(path.parts))
        for candidate in (path, path.with_name(f'{path.name}.mdx')):  # pages of hfdocs link without an ending
            if candidate in pages:
                up = '../' * len(page_of(source).parent.parts)
                return f'[{label}]({up}{page_of(candidate).as_posix()}{anchor})'
        return match[0] if picture else f'{label} (`{path.as_posix()}`)'

    def reference(match: re.Match) -> str:
        members = re.findall(r'\w+', match[2])
        return f'::: {match[1]}\n    options:\n      members: [{", ".join(members)}]\n'

    return _AUTODOC.sub(reference, _LINK.sub(link, text))


def _without_parents(parts: tuple) -> list:
    """Resolve `..` in the parts of a path."""
    resolved = []
    for part in parts:
        resolved = resolved[:-1] if part == '..' else [*resolved, part]
    return resolved


def write_pages() -> None:
    """Write the pages and their pictures to `build/pages`."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for source in sources():
        page = PAGES / page_of(source)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(rewrite((ROOT / source).read_text(), source))
    for pattern in PICTURES:
        for picture in ROOT.glob(pattern):
            copy = PAGES / picture.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, copy)


def build(config: Path) -> int:
    """Run MkDocs on pages that were written. Returns its exit status, which is not 0 where a link leads nowhere."""
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--config-file', str(config)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'}).returncode


if __name__ == '__main__':
    write_pages()
    sys.exit(build(ROOT / 'mkdocs.yml'))
