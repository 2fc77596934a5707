"""The site has every page, with its links, pictures and references."""
import importlib.util
import re

import pytest
from pages import PAGES, ROOT

pytest.importorskip('mkdocs')

spec = importlib.util.spec_from_file_location('site_builder', ROOT / 'docs' / 'site.py')
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """The site, built in a folder of its own. MkDocs stops at any link that leads nowhere."""
    folder = tmp_path_factory.mktemp('site')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, 'PAGES', folder / 'pages')
        site.write_pages()
    config = (ROOT / 'mkdocs.yml').read_text().replace('build/pages', str(folder / 'pages'))
    config = config.replace('build/site', str(folder / 'html')).replace('[build]', f'[{ROOT / "build"}]')
    (folder / 'mkdocs.yml').write_text(config)
    assert site.build(folder / 'mkdocs.yml') == 0
    return folder / 'html'


def test_every_page_is_there(pages):
    for page in PAGES:
        made = pages / site.page_of(page.relative_to(ROOT)).with_suffix('.html')
        assert made.exists()
        assert '[[autodoc]]' not in made.read_text() and '.mdx' not in re.sub('<code.*?</code>', '', made.read_text())


def test_references_are_filled_in(pages):
    text = (pages / 'hfdocs' / 'source' / 'reference' / 'mim.html').read_text()
    for name in ('timm.models.EmbedStagesMixin.forward_stages', 'timm.mim.create_mim', 'timm.mim.MAE.reconstruct'):
        assert f'id="{name}"' in text
    assert 'Masked patches' in text


def test_links_between_pages_and_to_files():
    text = 'See [speed](docs/speed.md#speed), ![x](hfdocs/source/images/a.png), [a recipe](recipes/x.yaml), [web](https://a.b).'
    assert site.rewrite(text, site.Path('README.md')) == (
        'See [speed](docs/speed.md#speed), ![x](hfdocs/source/images/a.png), a recipe (`recipes/x.yaml`), '
        '[web](https://a.b).')
    assert site.rewrite('[models](./mim_models)', site.Path('hfdocs/source/masked_image_modeling.mdx')) == (
        '[models](../../hfdocs/source/mim_models.md)')
