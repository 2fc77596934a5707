"""A clone of upstream: read with git and never changed. Patches are made in a repository beside it.

Three files are in no wheel of upstream's, so that no overlay changes them: two scripts and the table of contents of the
documentation. They are changed as they are in the clone.
"""
import ast
import hashlib
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Set

from . import PatchsetError
from .names import import_edits
from .overlay import HEADER, Overlay, find_anchor
from .source import Edit, Source, apply_edits, find_kind

NAME, EMAIL = 'The authors of the timm.mim fork', 'timm-mim@users.noreply.github.com'

# the same bytes whoever runs it, and whatever their git is set to
DATE = '1795219200 +0000'  # 2026-11-21

SETTINGS = {
    'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_NOSYSTEM': '1', 'LC_ALL': 'C', 'TZ': 'UTC',
    'GIT_COMMITTER_NAME': NAME, 'GIT_COMMITTER_EMAIL': EMAIL, 'GIT_COMMITTER_DATE': DATE,
}
COVER = 'cover-letter.txt'  # no .patch: `git am DIR/*.patch` takes no letter

CONTENTS = 'hfdocs/source/_toctree.yml'
ENTRY = rb'  - local: .*\n(?:    .*\n)*'
SECTION = re.compile(rb'- sections: *\n(?P<entries>(?:' + ENTRY + rb')*)(?P<keys>(?:  \w+:.*\n?)*)\s*')


class Commit(NamedTuple):
    """
    Attributes:
        message: Its first line is the subject.
        files: Contents by path.
    """
    message: str
    files: Dict[str, bytes]


class Clone:
    """A git repository of upstream, with or without a work tree."""

    def __init__(self, root: Path):
        self.root = Path(root).resolve()
        if not self.root.is_dir() or self.git('rev-parse', '--git-dir', check=False) is None:
            raise PatchsetError(str(root), "is not a git repository; 'git init' and a commit make it one")

    def base(self, version: str) -> str:
        """The commit that the series starts from: the release's tag, else what is checked out."""
        for name in (f'v{version}', 'HEAD'):
            commit = self.git('rev-parse', '--verify', '--quiet', f'{name}^{{commit}}', check=False)
            if commit:
                return commit.decode().strip()
        raise PatchsetError(str(self.root), 'has no commit')

    def tree(self, commit: str) -> Dict[str, List[str]]:
        """Mode and object of each file of a commit, by path."""
        entries = self.git('ls-tree', '-r', '-z', commit).decode('utf-8', 'surrogateescape').split('\0')
        pairs = (entry.split('\t', 1) for entry in entries if entry)
        return {path: about.split()[::2] for about, path in pairs}

    def read(self, commit: str, path: str) -> bytes:
        return self.git('cat-file', 'blob', f'{commit}:{path}')

    def require(self, commit: str, files: Mapping[str, bytes], version: str) -> None:
        """The files must be those of the release, byte for byte."""
        tree = self.tree(commit)
        differ = [path for path, data in files.items() if tree.get(path, [None, None])[1] != object_name(data, tree)]
        if differ:
            raise PatchsetError(
                str(self.root),
                f'{commit[:12]} is not timm {version}: {differ[0]} differs (and {len(differ) - 1} more); fetch the tag '
                f"v{version}, or commit the release's source distribution")

    def mail(self, base: str, commits: List[Commit], folder: Path, cover: Optional[str]) -> List[str]:
        """Write commits on top of another as patches, `git format-patch`; returns their names, without the letter's."""
        with self.beside() as git:
            modes = {path: mode for path, (mode, _) in self.tree(base).items()}
            git('fast-import', '--quiet', '--done', input=stream(base, commits, modes))
            command = ['format-patch', '--quiet', '--zero-commit', '--no-signature', '--binary', '--full-index',
                       '--no-renames', '--numbered', '-o', str(folder), f'{base}..refs/heads/series']
            git(*command, *(['--cover-letter', '--cover-from-description=none'] if cover else []))
        names = sorted(path.name for path in folder.glob('[0-9][0-9][0-9][0-9]-*.patch'))
        if cover:
            fill_cover((folder / names.pop(0)).rename(folder / COVER), cover)
        return names

    @contextmanager
    def beside(self) -> Iterator:
        """Git in an empty repository that borrows the clone's objects, so that the clone stays as it is."""
        common = Path(self.git('rev-parse', '--path-format=absolute', '--git-common-dir').decode().strip())
        with tempfile.TemporaryDirectory() as folder:
            run(['init', '--quiet', '--bare', folder], Path(folder))
            (Path(folder) / 'objects/info/alternates').write_text(f'{common / "objects"}\n')
            if (common / 'shallow').is_file():
                (Path(folder) / 'shallow').write_bytes((common / 'shallow').read_bytes())
            yield lambda *arguments, **options: run(arguments, Path(folder), **options)

    def git(self, *arguments: str, check: bool = True) -> Optional[bytes]:
        return run(arguments, self.root, check=check)


def run(arguments, folder: Path, input: Optional[bytes] = None, check: bool = True) -> Optional[bytes]:
    """Output of a git command; None where it fails and `check` is off."""
    # a hook that runs this has variables of another tree
    environment = {key: value for key, value in os.environ.items() if not key.startswith('GIT_')}
    result = subprocess.run(
        ['git', *arguments], cwd=folder, env={**environment, **SETTINGS}, input=input, capture_output=True)
    if result.returncode and not check:
        return None
    if result.returncode:
        lines = result.stderr.decode(errors='replace').strip().splitlines() or ['no output']
        raise PatchsetError(f'git {arguments[0]}', lines[-1])
    return result.stdout


def object_name(data: bytes, tree: Mapping[str, List[str]]) -> str:
    """The name that git gives to a file, by the hash that the repository uses."""
    longer = any(len(name) == 64 for _, name in tree.values())
    return (hashlib.sha256 if longer else hashlib.sha1)(b'blob %d\0' % len(data) + data).hexdigest()


def stream(base: str, commits: List[Commit], modes: Mapping[str, str]) -> bytes:
    """Commits in the format of `git fast-import`."""
    parts = []
    for i, commit in enumerate(commits):
        message = commit.message.encode()
        parts.append(f'commit refs/heads/series\nauthor {NAME} <{EMAIL}> {DATE}\n'
                     f'committer {NAME} <{EMAIL}> {DATE}\n'.encode())
        parts.append(b'data %d\n' % len(message) + message + b'\n')
        parts.append(b'' if i else f'from {base}\n'.encode())
        for path, data in sorted(commit.files.items()):
            parts.append(f'M {modes.get(path, "100644")} inline {path}\n'.encode())
            parts.append(b'data %d\n' % len(data) + data + b'\n')
        parts.append(b'\n')
    return b''.join(parts + [b'done\n'])


def fill_cover(file: Path, text: str) -> None:
    """Put subject and text into git's cover letter."""
    subject, body = text.strip().split('\n', 1)
    letter = file.read_text(encoding='utf-8')
    letter = letter.replace('*** SUBJECT HERE ***', subject).replace('*** BLURB HERE ***', body.strip())
    file.write_text(letter, encoding='utf-8')


class Script(NamedTuple):
    """Where a script of upstream's is changed, and into what.

    Attributes:
        imports: What is imported.
        add_arguments: The call that adds the flags.
        after_flags: The function that follows upon the last flag.
        parsed: The statement in `main` that parses the command line.
        run: The call that takes over.
    """
    imports: str
    add_arguments: str
    after_flags: str
    parsed: str
    run: str


SCRIPTS = {
    'train.py': Script(
        'from timm.mim import pretrain', 'pretrain.add_arguments(parser)', '_parse_args',
        'args, args_text = _parse_args()', 'pretrain.run(pretrain.given_arguments(parser))'),
    'validate.py': Script(
        'from timm.mim.pretrain import given_arguments, validate as pretraining', 'pretraining.add_arguments(parser)',
        'validate', 'args = parser.parse_args()', 'pretraining.run(given_arguments(parser))'),
}


def hand_over(data: bytes, path: str) -> bytes:
    """Args:
        data: Upstream's script.
        path: Which one it is.
    """
    script, source = SCRIPTS[path], Source(data, path)
    imports = import_edits(source, Overlay(HEADER + f' of a script.\n{script.imports}\n'.encode(), path))
    if not imports:
        raise PatchsetError(path, 'imports timm.mim already')
    flags = f'\n\n# Masked image modeling parameters\n{script.add_arguments}'
    taken_over = f'\n    if args.mim:\n        {script.run}\n        return'
    return apply_edits(data, imports + [
        insert_after(source, last_argument(source, script.after_flags), flags),
        insert_after(source, parsed(source, script.parsed), taken_over),
    ])


def insert_after(source: Source, statement: ast.stmt, text: str) -> Edit:
    end = source.end_offset(statement.end_lineno)
    return Edit(end, end, text.encode().replace(b'\n', source.newline))


def last_argument(source: Source, function: str) -> ast.stmt:
    """The last flag, right before a function."""
    body = source.tree.body
    before = body[body.index(function_of(source, function)) - 1]
    call = getattr(before, 'value', None)
    if not isinstance(call, ast.Call) or getattr(call.func, 'attr', '') != 'add_argument':
        raise PatchsetError(
            source.path, f'upstream has no add_argument call right before {function}, where --mim would go')
    return before


def parsed(source: Source, statement: str) -> ast.stmt:
    statements = function_of(source, 'main').body
    return statements[find_anchor(statement, statements, f'{source.path}: main')]


def function_of(source: Source, name: str) -> ast.stmt:
    function = find_kind(source.tree.body, name, 'function', f'{source.path}: {name}')
    if function is None:
        raise PatchsetError(f'{source.path}: {name}', 'upstream has no such function')
    return function


class Section(NamedTuple):
    """
    Attributes:
        title: The section's title.
        text: Its lines.
        entries: Lines of its entries, each an item with the name of its page.
        end: Offset of the line after the last entry.
    """
    title: str
    text: bytes
    entries: List[bytes]
    end: int


def merge_contents(ours: bytes, theirs: bytes) -> bytes:
    """Append our entries to upstream's sections of the same title, and the sections that upstream lacks."""
    present = pages_of(theirs)
    sections = {section.title: section for section in read(theirs)}
    edits = []
    for section in read(ours):
        missing = [entry for entry in section.entries if page_of(entry) not in present]
        if section.title in sections:
            end = sections[section.title].end
            edits.append(Edit(end, end, b''.join(missing)))
        elif missing:
            gap = b'' if theirs.endswith(b'\n') else b'\n'
            edits.append(Edit(len(theirs), len(theirs), gap + section.text))
    return apply_edits(theirs, edits)


def pages_of(contents: bytes) -> Set[str]:
    return {page_of(entry) for section in read(contents) for entry in section.entries}


def read(contents: bytes) -> List[Section]:
    sections, offset = [], 0
    for text in re.split(rb'^(?=- )', contents, flags=re.MULTILINE):
        if offset or text.startswith(b'- '):
            sections.append(read_section(text, offset))
        offset += len(text)
    return sections


def read_section(text: bytes, offset: int) -> Section:
    found = SECTION.fullmatch(text)
    title = found and re.search(rb'^  title: *(.*?) *$', found['keys'], re.MULTILINE)
    if not title:
        raise PatchsetError(CONTENTS, f'is not a list of sections with entries and titles: {text[:40].decode()!r}')
    return Section(title[1].decode(), text, re.findall(ENTRY, found['entries']), offset + found.end('entries'))


def page_of(entry: bytes) -> str:
    return entry.split(b'\n')[0].split(b'local:')[1].strip().decode()
