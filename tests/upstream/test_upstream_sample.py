"""A sample of upstream's own tests: those of its layers, and of the smallest model of each class.

`make upstream-tests` runs them on all models.
"""
import pytest

import run

# parameters of the largest model, and arguments of pytest; TorchScript and FX on each class: tests/equivalence
PARTS = {
    'layers and other files': ('8e6', [f'tests/{file}' for file in run.FILES if file != 'test_models.py']),
    'features and gradients': ('8e6', ['tests/test_models.py', '-m', 'backward or features']),
    'traced and scripted': ('3e6', ['tests/test_models.py', '-m', 'forward or torchscript or fxforward']),
}


@pytest.mark.parametrize('part', PARTS)
def test_sample(monkeypatch, tmp_path, part):
    run.fetch()
    largest, arguments = PARTS[part]
    monkeypatch.setenv('SMALLEST_OF_CLASS', '1')
    monkeypatch.setenv('LARGEST', largest)
    outcomes = run.run(arguments, tmp_path / 'outcomes.txt')
    assert [name for name, outcome in outcomes.items() if outcome == 'failed'] == []
    assert list(outcomes.values()).count('passed') > 20
