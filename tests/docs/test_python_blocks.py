"""Every block of Python in the documentation runs, page by page, in the order of the page."""
import re
import traceback

import pytest
import torch

import timm
from pages import PAGES, ROOT, blocks, run
from timm.mim import factory
from timm.mim.pretrain.encoder_files import save_encoder

RUN = 'output/pretrain/my_run'  # the run folder that pages take for granted
IMAGE_SIZE = 224


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A folder to work in, with the encoder of a run that a page tells of."""
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    encoder = timm.create_model('vit_tiny_patch16_224', num_classes=0)
    data_config = dict(
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', crop_pct=0.9)
    save_encoder(folder, encoder.state_dict(), encoder, data_config, tag='mae')
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Methods that a page registers are gone after it."""
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))


def is_overlay(block):
    """Whether a block shows a part of an overlay, which is a fragment."""
    return '@moved_from' in block.code


@pytest.mark.parametrize(
    'page', [page for page in PAGES if blocks(page, 'python')], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page, run_folder):
    torch.manual_seed(0)
    namespace = {'__name__': 'page'}
    for block in blocks(page, 'python'):
        if not is_overlay(block):
            run(block, namespace)


def test_overlays_are_quoted_word_for_word():
    overlays = [path.read_text() for path in (ROOT / 'timm' / 'models').glob('*.py')]
    quoted = [block for page in PAGES for block in blocks(page, 'python') if is_overlay(block)]
    assert quoted
    for block in quoted:
        code = re.sub(r'\.\.\.  # .*', '...', block.code).strip()  # what a page adds to say
        assert any(all(part in overlay for part in code.split('\n\n')) for overlay in overlays), block.place


def test_an_error_names_its_page_and_line(tmp_path):
    page = tmp_path / 'page.mdx'
    code = '# Page\n\n```python\nx = 1\n```\n\n```bash\nfalse\n```\n\n```python\ny = x\n\nassert y == 2\n```\n'
    page.write_text(code)
    namespace = {}
    first, second = blocks(page, 'python')
    run(first, namespace)
    with pytest.raises(AssertionError) as error:
        run(second, namespace)
    assert second.place == 'page.mdx:12'
    assert [frame.lineno for frame in traceback.extract_tb(error.tb) if frame.filename == str(page)] == [14]
