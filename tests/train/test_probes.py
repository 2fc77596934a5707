"""Probes agree with scikit-learn, and with what timm's models give."""
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import timm
from timm.mim import create_mim
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.options import resolve_options
from timm.mim.pretrain.probes.classifiers import (
    attentive_predict,
    fit_logistic_regression,
    knn_predict,
    linear_predict,
    standardize,
)
from timm.mim.pretrain.probes.probes import Probes, open_probe_data, read_features, resolve_layers


def toy(num_images, spread, num_classes=4, channels=12, seed=0):
    """Features around one centre per class, at different scales, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_classes, channels))
    labels = rng.integers(0, num_classes, num_images)
    features = centres[labels] + spread * rng.normal(size=(num_images, channels))
    return torch.tensor(features * np.geomspace(0.1, 10, channels), dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize('num_images', [300, 7])
@pytest.mark.parametrize('spread', [0.3, 2.0])
def test_knn_is_that_of_scikit_learn(spread, num_images):
    neighbors = pytest.importorskip('sklearn.neighbors')
    (x, y), (queries, _) = toy(num_images, spread), toy(1500, spread, seed=1)
    reference = neighbors.KNeighborsClassifier(
        min(20, num_images), metric='cosine', algorithm='brute', weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = reference.fit(x.double(), y).predict(queries.double())
    predicted = knn_predict(x, y, queries, num_classes=4)
    # votes of two classes may be equal up to rounding
    assert (predicted.numpy() == expected).mean() > 0.995


def test_knn_weights_matter():
    """One near neighbour outvotes several far ones."""
    x = torch.tensor([[1., 0.], [0., 1.], [0., 1.], [0.1, 1.]])
    assert knn_predict(x, torch.tensor([0, 1, 1, 1]), torch.tensor([[5., 1.]]), 2).tolist() == [0]


@pytest.mark.parametrize('spread, penalty', [(0.3, 1e-2), (2.0, 1e-1), (2.0, 1e-3)])
def test_logistic_regression_is_that_of_scikit_learn(spread, penalty):
    linear_model = pytest.importorskip('sklearn.linear_model')
    (x, y), (queries, _) = toy(200, spread), toy(500, spread, seed=1)
    x, queries = standardize(x, queries)
    weight, bias = fit_logistic_regression(x, y, 4, penalty)
    reference = linear_model.LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=1000).fit(x.double(), y)
    probabilities = torch.nn.functional.linear(queries, weight, bias).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(queries.double()), atol=2e-3)


def test_linear_probe_chooses_its_penalty():
    linear_model = pytest.importorskip('sklearn.linear_model')
    # most features tell nothing: a weak penalty learns their noise by heart
    (x, y), (queries, labels) = toy(300, 2.0), toy(1000, 2.0, seed=1)
    generator = torch.Generator().manual_seed(0)
    x, queries = (torch.cat([f, torch.randn(len(f), 100, generator=generator)], 1) for f in (x, queries))
    accuracy = (linear_predict(x, y, queries, 4) == labels).double().mean()
    a, b = standardize(x, queries)
    weak, strong = [
        linear_model.LogisticRegression(C=1 / (penalty * len(a)), max_iter=1000).fit(a, y).score(b, labels)
        for penalty in (1e-4, 1e-1)]
    assert weak + 0.04 < strong
    assert accuracy == pytest.approx(strong, abs=0.015)


def test_standardize():
    x, _ = toy(100, 1.0)
    x[:, 3] = 2.0  # a constant feature
    a, b = standardize(x, x[:10])
    others = [i for i in range(12) if i != 3]
    np.testing.assert_allclose(a[:, others].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(a[:, others].std(0, correction=0), 1, atol=1e-5)
    assert torch.equal(b, a[:10]) and (a[:, 3] == 0).all()


def test_attentive_probe_finds_the_token_that_tells():
    """The class is that of one token among noise, at any place; the sign of all tokens together tells nothing."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        labels = torch.randint(0, 3, (count,), generator=generator)
        tokens = torch.randn(count, 16, 8, generator=generator)
        tokens[..., :4] = 0
        places = torch.randint(0, 16, (count,), generator=generator)
        tokens[torch.arange(count), places, 0] = 4
        tokens[torch.arange(count), places, 1 + labels] = 4
        return tokens, labels
    (tokens, labels), (queries, expected) = draw(200), draw(200)
    state = torch.get_rng_state()
    predicted = attentive_predict(tokens, labels, queries, 3, torch.device('cpu'))
    assert (predicted == expected).double().mean() > 0.95
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attentive_predict(tokens, labels, queries, 3, torch.device('cpu')), predicted)


@torch.no_grad()
def test_features_of_a_vision_transformer():
    model = timm.create_model('test_vit', img_size=64, num_classes=0, depth=3).eval()
    images = torch.randn(2, 3, 64, 64)
    inputs = []
    model.blocks[2].register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    features = read_features(model, images, [2, 'last'], tokens=True)
    tokens = model.forward_features(images)
    assert torch.equal(features['last'], tokens[:, 0])  # the model pools to its class token
    torch.testing.assert_close(features[2], model.norm(inputs[0])[:, 0])
    assert torch.equal(features['tokens'], tokens[:, 1:])
    averaged = read_features(model, images, [2, 'last'], average=True)
    torch.testing.assert_close(averaged['last'], tokens[:, 1:].mean(1))
    torch.testing.assert_close(averaged[2], model.norm(inputs[0])[:, 1:].mean(1))


@torch.no_grad()
@pytest.mark.parametrize('name, options', [
    ('test_vit', dict(global_pool='avg', depth=2)),
    ('swin_tiny_patch4_window7_224', dict(depths=(1, 1), num_heads=(1, 2), embed_dim=8, window_size=2)),
])
def test_features_of_models_that_average(name, options):
    model = timm.create_model(name, img_size=64, num_classes=0, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    features = read_features(model, images, [1, 'last'])
    assert torch.equal(features['last'], model(images))
    first = model.forward_intermediates(images, indices=[0], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(features[1], first.flatten(2).mean(2))


def test_layers():
    assert resolve_layers(['all'], 4) == [1, 2, 3, 'last']
    assert resolve_layers(['2', 'last', '2'], 4) == [2, 'last']
    for layer in ('0', '5', '-1', 'first'):
        with pytest.raises(UserError, match=f"no layer '{layer}'; the model has 1 to 4"):
            resolve_layers([layer], 4)


def write(folder, count, colour=0):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new('RGB', (8, 8), (colour, number, 0)).save(folder / f'{number}.png')


def test_split_of_class_folders(tmp_path):
    for number, name in enumerate(('cat', 'dog', 'owl')):
        write(tmp_path / name, (10, 10, 2)[number], number)
    data = open_probe_data(str(tmp_path), 'RGB')
    assert data.classes == ['cat', 'dog', 'owl']
    assert data.test.labels.bincount().tolist() == [2, 2, 1] and data.train.labels.bincount().tolist() == [8, 8, 1]
    paths = [{path for path, _ in part.images.reader.samples} for part in (data.train, data.test)]
    assert not paths[0] & paths[1] and len(paths[0] | paths[1]) == 22
    for part in (data.train, data.test):  # every label is that of its image
        pixels = [np.asarray(part.images[i][0])[0, 0, 0] for i in range(len(part.labels))]
        assert pixels == part.labels.tolist()
    again = open_probe_data(str(tmp_path), 'RGB')
    assert again.test.images.reader.samples == data.test.images.reader.samples


def test_train_and_val(tmp_path):
    for split, count in (('train', 3), ('val', 2)):
        write(tmp_path / split / 'a', count)
        write(tmp_path / split / 'b', count)
    write(tmp_path / 'train' / '0', 1)  # a class without test images moves the numbers of the others
    data = open_probe_data(str(tmp_path), 'L')
    assert data.classes == ['0', 'a', 'b']
    assert data.train.labels.bincount().tolist() == [1, 3, 3] and data.test.labels.tolist() == [1, 1, 2, 2]
    write(tmp_path / 'val' / 'zebra', 1)
    with pytest.raises(UserError, match='zebra'):
        open_probe_data(str(tmp_path), 'L')


@pytest.mark.parametrize('make, message', [
    (lambda root: None, 'there is no folder'),
    (lambda root: (root / 'a').mkdir(parents=True), 'no image in'),
    (lambda root: write(root, 3), 'two classes or more'),
    (lambda root: write(root / 'train' / 'a', 3), 'no other half'),
    (lambda root: (write(root / 'a', 3), write(root / 'b', 1)), 'class b in .* has one image'),
])
def test_folders_that_are_refused(make, message, tmp_path):
    make(tmp_path / 'labelled')
    with pytest.raises(UserError, match=message):
        open_probe_data(str(tmp_path / 'labelled'), 'RGB')


@pytest.fixture
def make_probes(tmp_path):
    """Makes probes of a small encoder on 13 images of noise."""
    rng = np.random.default_rng(0)
    for name, count in (('a', 9), ('b', 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f'{number}.png')
    options, _ = resolve_options(Namespace(
        mim='simmim', device='cpu', model='test_vit', workers=0, batch_size=3, mim_probe_dir=str(tmp_path)))
    config = dict(
        input_size=(3, 32, 32), mean=(.5,) * 3, std=(.5,) * 3, interpolation='bicubic', crop_pct=1.0, mode='RGB')
    torch.manual_seed(0)
    method = create_mim('simmim', 'test_vit', img_size=32, mask_unit=16).eval()

    def make(rank=0, world_size=1):
        process = Namespace(device='cpu', rank=rank, world_size=world_size, distributed=False)
        return Probes(options, method, config, process), method
    return make


def test_shares_of_processes_make_the_whole(make_probes):
    def share_of(rank):
        probes, method = make_probes(rank, 3)
        kept = []
        probes._gather = lambda share: kept.append(share)
        assert probes._features(probes.data.train, probes._reader(method, torch.no_grad))[0] == {}
        return kept[0]

    whole, method = make_probes()
    expected, expected_labels = whole._features(whole.data.train, whole._reader(method, torch.no_grad))
    shares = [share_of(rank) for rank in range(3)]
    first, _ = make_probes(0, 3)
    first._gather = lambda share: [share, *shares[1:]]
    features, labels = first._features(first.data.train, first._reader(method, torch.no_grad))
    # batches are cut elsewhere, which may change the last bits
    torch.testing.assert_close(features['last'], expected['last'])
    assert torch.equal(labels, expected_labels) and torch.equal(labels, whole.data.train.labels)
    assert len(expected['last'].unique(dim=0)) == 10 and [len(share['last']) for share in shares] == [4, 4, 4]


def test_image_that_cannot_be_read(make_probes):
    probes, method = make_probes()
    expected, _ = probes._features(probes.data.train, probes._reader(method, torch.no_grad))
    path, _ = probes.data.train.images.reader.samples[2]
    with open(path, 'wb') as f:
        f.write(b'no image')
    features, labels = probes._features(probes.data.train, probes._reader(method, torch.no_grad))
    others = [n for n in range(10) if n != 2]
    assert torch.equal(labels, probes.data.train.labels[others])
    torch.testing.assert_close(features['last'], expected['last'][others])
    assert set(probes.measure(method, torch.no_grad)) == {'knn_top1', 'linear_top1'}
