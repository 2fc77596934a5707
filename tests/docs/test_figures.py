"""The figures of the pages are those of the files that they come from."""
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pages import ROOT
from timm.mim.visualize import save_panel


def load(name):
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT / 'docs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures, gallery = load('figures'), load('gallery')


@pytest.mark.parametrize('page', figures.PAGES, ids=lambda page: page.name)
def test_pages_are_up_to_date(page):
    text = page.read_text()
    assert figures.rewrite(text) == text, 'make figures writes it again'
    assert text.count('<!-- figure ') == text.count('<!-- end -->') == len(figures._FIGURE.findall(text))


def test_a_stale_or_unknown_figure_is_found():
    assert figures.rewrite('a <!-- figure models -->12<!-- end --> b') == (
        f'a <!-- figure models -->{figures.models()}<!-- end --> b')
    slow = '<!-- figure patch -->1 file<!-- end -->'
    assert figures.rewrite(slow) == slow
    for unknown in ('colour', 'lines', 'models mae vit'):
        with pytest.raises(ValueError, match=f'figure {unknown}: '):
            figures.rewrite(f'<!-- figure {unknown} -->1<!-- end -->')


def test_numbers_of_models():
    """Against timm's own list, and the page of models."""
    import timm
    assert figures.models() == str(len(timm.list_models()))
    page = (ROOT / 'hfdocs' / 'source' / 'mim_models.mdx').read_text()
    for method in ('simmim', 'mae', 'ijepa'):
        assert re.search(rf'\b{figures.models(method)}\b', page)


def test_settings_of_the_demo_are_those_that_it_ran(monkeypatch):
    """Of two settings with equal accuracy the page names the one that was run."""
    tried = [dict(start='mae', setting=dict(learning_rate=rate), accuracy=50.) for rate in (1, 2)]
    results = dict(search=tried, settings=dict(mae=dict(learning_rate=2)))
    monkeypatch.setattr(figures, '_results', lambda name: results)
    assert '| mae | learning rate 2 | 50.0 |' in figures.few_labels_search()
    assert 'learning rate 1' not in figures.few_labels_search()


@pytest.mark.parametrize('name, page', [('continued', 'pretraining'), ('decoders', 'masked_image_modeling')])
def test_tables_of_hfdocs(name, page):
    """These pages cannot mark a figure with comments, so that the tables are pasted."""
    assert getattr(figures, name)().strip() in (ROOT / 'hfdocs' / 'source' / f'{page}.mdx').read_text()


def test_layout_of_the_gallery(tmp_path):
    """Each image keeps its views, in order, from left to right."""
    colours = np.random.default_rng(0).integers(0, 255, (3, 3, 3))
    rows = [[Image.new('RGB', (32, 32), tuple(int(v) for v in colour)) for colour in row] for row in colours]
    save_panel(tmp_path / 'panel.png', rows, ['a', 'b', 'c'], caption='epoch 1')
    sheet = np.asarray(gallery.lay_out(gallery.cut(tmp_path / 'panel.png', [0, 1, 2], [])))
    for image in range(3):
        for view in range(3):
            y = view * (gallery.SIDE + gallery.TOP) + gallery.TOP + gallery.SIDE // 2
            x = image * (gallery.SIDE + gallery.GAP) + gallery.GAP + gallery.SIDE // 2
            assert (sheet[y, x] == colours[image, view]).all()


def test_the_demo_starts_from_its_file():
    """Python then looks for modules beside the script, not in the clone."""
    done = subprocess.run([sys.executable, 'examples/digits.py', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '--seeds' in done.stdout, done.stderr
