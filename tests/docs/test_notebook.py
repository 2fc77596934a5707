"""The notebook runs from its first cell to its last, and carries no outputs."""
import json

import pytest
from PIL import Image

from pages import ROOT

NOTEBOOK = ROOT / 'examples' / 'first_steps.ipynb'
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']


def test_it_runs(tmp_path, monkeypatch):
    """All cells in one namespace, as a kernel has it, with half a second of training."""
    pytest.importorskip('sklearn')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('FIRST_STEPS_SECONDS', '0.5')
    namespace = {'__name__': '__main__'}
    for number, cell in enumerate(CELLS):
        exec(compile(''.join(cell['source']), f'{NOTEBOOK.name}, code cell {number}', 'exec'), namespace)
    assert namespace['losses'] and set(namespace['accuracy']) == {'encoder', 'encoder before training', 'pixels'}
    assert namespace['accuracy']['pixels'] > 90 and min(namespace['accuracy'].values()) > 20  # chance is 10
    Image.open(tmp_path / 'output' / 'first_steps.png').verify()


def test_it_has_no_outputs():
    assert [cell['outputs'] for cell in CELLS] == [[]] * len(CELLS)
    assert {cell['execution_count'] for cell in CELLS} == {None}
