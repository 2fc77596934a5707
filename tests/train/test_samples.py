"""Images that ship in Python packages: one mechanism for digits and photographs."""
import numpy as np
import pytest

from timm.mim.pretrain.data.samples import open_samples
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.probes.probes import open_probe_data

datasets = pytest.importorskip('sklearn.datasets')


def test_digits_are_split_once():
    splits = {split: open_samples('samples/digits', split) for split in ('train', 'validation', 'test')}
    assert {name: len(samples.images) for name, samples in splits.items()} == dict(train=1285, validation=256, test=256)
    names = [name for samples in splits.values() for name in samples.names]
    assert sorted(names) == sorted(f'digit {i}' for i in range(1797))
    digits = datasets.load_digits()
    for samples in splits.values():
        for image, name, label in zip(samples.images, samples.names, samples.labels):
            i = int(name.removeprefix('digit '))
            assert digits.target[i] == label
            assert image.mode == 'L' and np.abs(np.asarray(image) / 255 - digits.images[i] / 16).max() <= 0.5 / 255


@pytest.mark.parametrize('name, split, message', [
    ('samples/digit', 'train', "no 'samples/digit'; choose samples/digits or samples/photographs"),
    ('samples/digits', 'eval', "samples/digits has no split 'eval'"),
])
def test_mistakes(name, split, message):
    with pytest.raises(UserError, match=message):
        open_samples(name, split)


def test_digits_are_probed_on_the_split_that_is_asked_for():
    data = open_probe_data('samples/digits', 'L', 'test')
    assert (len(data.train.labels), len(data.test.labels), data.classes) == (1285, 256, [str(n) for n in range(10)])
    assert data.test.labels.tolist() == open_samples('samples/digits', 'test').labels
    with pytest.raises(UserError, match='has no labels'):
        open_probe_data('samples/photographs', 'RGB')
