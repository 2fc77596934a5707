"""The benchmarks that compare whole runs of train.py: what they choose, what they write, and that recipes follow."""
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import digits as demo  # noqa: E402
from benchmarks import continued, digits, runs  # noqa: E402
from timm.mim import create_mim  # noqa: E402
from timm.mim.pretrain.data.samples import open_samples  # noqa: E402


def test_the_recipe_has_the_rate_of_the_results():
    found = json.loads(digits.RESULTS.read_text())
    assert found['learning_rate'] == float(yaml.safe_load(digits.RECIPE.read_text())['lr'])
    assert digits.best([dict(learning_rate=1, masked_l1=0.2), dict(learning_rate=2, masked_l1=0.1)]) == 2


def test_a_run_that_fails_is_told_and_a_complete_one_is_not_repeated(tmp_path):
    with pytest.raises(SystemExit, match=f'failed: see {tmp_path / "a.log"}'):
        runs.train(tmp_path, 'a', '--mim', 'mae', '--no-such-flag')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'summary.json').write_text('{"best": 1}')
    assert runs.train(tmp_path, 'b', '--mim', 'mae') == dict(best=1)


def test_halves_do_not_overlap(tmp_path):
    """No image by which an epoch is chosen, and none that is reported on, is in a half; labels are those of the set."""
    continued.write_halves(tmp_path)
    names = {folder: {path.stem for path in (tmp_path / folder).rglob('*.png')} for folder in (
        'first', 'second', 'validation/train', 'validation/val', 'test/train', 'test/val')}
    assert names['first'] | names['second'] == set(open_samples('samples/digits', 'train').names)
    assert names['validation/train'] == names['test/train'] == names['second']
    apart = [names[folder] for folder in ('first', 'second', 'validation/val', 'test/val')]
    assert sum(map(len, apart)) == len(set.union(*apart)) == 1797
    samples = open_samples('samples/digits', 'test')
    for name, label in list(zip(samples.names, samples.labels))[:20]:
        assert (tmp_path / 'test' / 'val' / str(label) / f'{name}.png').is_file()


@pytest.mark.parametrize('name', demo.METHODS)
def test_methods_of_the_demo(name):
    """Each trains all of its parameters once, and CAPI's clustering at a rate of its own."""
    options = {'method': name, **demo.METHODS[name]}
    method = create_mim(options.pop('method'), demo.timm.create_model(**demo.MODEL, num_classes=0), **options)
    optimizer, _ = demo.optimise(method, 10, 1e-3)
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert {*map(id, parameters)} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(parameters) == len({*map(id, parameters)})
    if name == 'capi':
        assert optimizer.param_groups[-1]['params'] == list(method.clustering.parameters())
        assert optimizer.param_groups[-1]['initial_lr'] == 5e-4 and optimizer.param_groups[-1]['weight_decay'] == 0.01
    output = method(torch.randn(4, 1, 8, 8))
    assert output.loss.isfinite()
