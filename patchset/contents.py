"""Merges entries into the contents of upstream's documentation, `_toctree.yml`."""
import re
from typing import List, NamedTuple, Set

from .edits import Edit, apply_edits
from .errors import PatchsetError

PATH = 'hfdocs/source/_toctree.yml'
ENTRY = rb'  - local: .*\n(?:    .*\n)*'
SECTION = re.compile(rb'- sections: *\n(?P<entries>(?:' + ENTRY + rb')*)(?P<keys>(?:  \w+:.*\n?)*)\s*')


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
        raise PatchsetError(PATH, f'is not a list of sections with entries and titles: {text[:40].decode()!r}')
    return Section(title[1].decode(), text, re.findall(ENTRY, found['entries']), offset + found.end('entries'))


def page_of(entry: bytes) -> str:
    return entry.split(b'\n')[0].split(b'local:')[1].strip().decode()
