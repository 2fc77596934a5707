"""Links, pictures and names of the documentation lead somewhere."""
import importlib
import importlib.util
import inspect
import re

import pytest
from PIL import Image

from pages import PAGES, ROOT, SOURCE, blocks

LINK = re.compile(r'(?<!!)\[[^\]]+\]\(([^)\s]+)\)')
PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src="([^"]+)"')
AUTODOC = re.compile(r'^\[\[autodoc\]\] ([\w.]+)\n((?: {4}- \w+\n)*)', re.MULTILINE)
MAX_PICTURE_BYTES = 100_000


def prose(page):
    """A page without its code."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.code, '')
    return text


def anchors(page):
    titles = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in LINK.findall(prose(page)):
        if re.match(r'https?://', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path) if path else page
        if page.suffix == '.mdx' and path:
            file = file.with_name(f'{file.name}.mdx')  # pages link to each other without an ending
        assert file.exists(), f'{page.name}: {target}'
        if anchor:
            assert anchor in anchors(file), f'{page.name}: {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_pictures(page):
    for names in PICTURE.findall(prose(page)):
        path = page.parent / (names[0] or names[1])
        assert path.stat().st_size < MAX_PICTURE_BYTES
        Image.open(path).verify()


def test_every_picture_is_shown():
    shown = {(page.parent / (a or b)).resolve() for page in PAGES for a, b in PICTURE.findall(page.read_text())}
    assert set(SOURCE.rglob('*.png')) <= shown


def resolve(name):
    """The object that a dotted name names."""
    parts = name.split('.')
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


REFERENCES = [match for page in PAGES for match in AUTODOC.findall(page.read_text())]


@pytest.mark.parametrize('name, members', REFERENCES, ids=[name for name, _ in REFERENCES])
def test_reference(name, members):
    documented = resolve(name)
    assert inspect.getdoc(documented), f'{name} has no docstring'
    for member in re.findall(r'\w+', members):
        assert inspect.getdoc(getattr(documented, member)), f'{name}.{member} has no docstring'


def test_the_reference_names_all_of_timm_mim():
    """What `timm.mim` exports, but for modules, and the methods of the protocol."""
    import timm.mim
    from timm.models import EmbedStagesMixin

    exported = {
        f'timm.mim.{name}' for name, value in vars(timm.mim).items()
        if name[0] != '_' and not inspect.ismodule(value)}
    named = {name: members for name, members in REFERENCES}
    assert exported <= named.keys()
    protocol = {name for name in vars(EmbedStagesMixin) if name[0] != '_' and name != 'grid_format'}
    assert set(re.findall(r'\w+', named['timm.models.EmbedStagesMixin'])) == protocol


def load_generator(name):
    path = ROOT / 'hfdocs' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'page_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', ['embed_stages_families', 'pretrain_options'])
def test_generated_page(name):
    module = load_generator(name)
    assert module.PAGE.read_text() == module.page(), f'python hfdocs/{name}.py writes it again'
