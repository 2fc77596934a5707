"""Augmentation on tensors is timm's: same boxes, same flips, pixels within a level or so of PIL's."""
import io
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_pretrain_data import CPU, config_of, options_of
from tiny_runs import write_images

from timm.data import create_transform
from timm.mim.pretrain.data import decoding
from timm.mim.pretrain.data.augmenting import on_tensors
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.data.decoding import ToMode, to_tensor
from timm.mim.pretrain.data.reading import ImageReader


def photograph(size=(90, 70)):
    """Smooth structure at all scales and some noise, as RGB."""
    rng = np.random.default_rng(0)
    layers = [Image.fromarray(rng.integers(0, 86, (n, n, 3), dtype=np.uint8)) for n in (3, 9, 40)]
    return Image.fromarray(sum(np.asarray(layer.resize(size)) for layer in layers))


def encode(image, format='JPEG', **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pair(mode='RGB', size=(32, 48), **options):
    transform = create_transform((3, *size), is_training=True, use_prefetcher=True, **{
        **dict(scale=(0.2, 1.0), color_jitter=None, auto_augment=None, interpolation='bicubic'), **options})
    on_pixels = on_tensors(transform, mode)

    def by_tensor(image):
        if isinstance(image, bytes):
            reader = ImageReader(transform, mode)
            return reader.finish(*reader.read(image))
        return on_pixels(to_tensor(ToMode(mode)(image)))

    return lambda image: transform(ToMode(mode)(image)), by_tensor if on_pixels else None


def drawn(transform, image, seed):
    random.seed(seed)
    torch.manual_seed(seed)
    return transform(image).float()


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('options', [
    dict(), dict(interpolation='bilinear', vflip=0.5), dict(interpolation='random', scale=(0.05, 0.2)),
    dict(size=(160, 120), ratio=(1., 3.))], ids=str)
def test_pixels_are_those_of_pil(mode, options):
    by_pil, by_tensor = pair(mode, **options)
    image = photograph()
    for seed in range(30):
        expected, found = drawn(by_pil, image, seed), drawn(by_tensor, image, seed)
        assert found.shape == expected.shape
        difference = (found - expected).abs()
        assert difference.max() <= 2 and difference.mean() < 0.3  # another box or flip: tens of levels


def test_crop_boxes_in_narrow_and_wide_images():
    """Coordinates as pixel values tell the box: same draws, same box."""
    for width, height in ((60, 60), (200, 20), (20, 200)):
        rows, columns = np.mgrid[:height, :width]
        image = Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8))
        by_pil, by_tensor = pair(scale=(0.3, 1.0), hflip=0.5)
        for seed in range(40):
            difference = (drawn(by_pil, image, seed) - drawn(by_tensor, image, seed)).abs().max()
            assert difference <= 1, (width, height, seed)


@pytest.mark.parametrize('options', [
    dict(quality=90), dict(quality=40, progressive=True), dict(subsampling=0)], ids=str)
def test_jpeg_files(options):
    data = encode(photograph(), **options)
    by_pil, by_tensor = pair()
    for seed in range(5):
        difference = (drawn(by_pil, Image.open(io.BytesIO(data)), seed) - drawn(by_tensor, data, seed)).abs()
        # two builds of one library may round differently
        assert difference.max() <= 4 and difference.mean() < 0.5


@pytest.mark.parametrize('source, format, mode', [
    ('RGBA', 'PNG', 'RGB'), ('L', 'JPEG', 'RGB'), ('CMYK', 'JPEG', 'RGB'), ('RGB', 'JPEG', 'L'), ('P', 'GIF', 'RGB')])
def test_other_files_and_modes(source, format, mode):
    data = encode(photograph().convert(source), format)
    by_pil, by_tensor = pair(mode)
    difference = (drawn(by_pil, Image.open(io.BytesIO(data)), 0) - drawn(by_tensor, data, 0)).abs()
    assert difference.max() <= 1


@pytest.mark.parametrize('options', [
    dict(color_jitter=0.4), dict(grayscale_prob=0.1), dict(gaussian_blur_prob=0.1), dict(auto_augment='rand-m9'),
    dict(train_crop_mode='rkrc'), dict(no_aug=True), dict(interpolation='lanczos')], ids=str)
def test_what_needs_pil_images_gets_them(options):
    assert pair(**options)[1] is None


def test_alpha_channels_and_evaluation_keep_pil():
    assert pair('RGBA')[1] is None and pair('LA')[1] is None
    assert on_tensors(create_transform((3, 32, 32), use_prefetcher=True), 'RGB') is None


def test_without_simplejpeg(monkeypatch):
    data = encode(photograph())
    _, by_tensor = pair()
    expected = drawn(by_tensor, data, 0)
    monkeypatch.setattr(decoding, 'simplejpeg', None)
    assert (drawn(by_tensor, data, 0) - expected).abs().max() <= 4


def write_jpegs(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f'{number:02d}.jpg').write_bytes(encode(photograph((60 + number, 50))))


def batches(options, mode='RGB', **process):
    loader = create_train_loader(open_data(options, mode).train, options, config_of(mode=mode), CPU, **process)
    return [images for images, _ in loader]


def test_one_process_or_two_and_workers(tmp_path):
    write_jpegs(tmp_path, 10)
    options = options_of(data_dir=str(tmp_path), batch_size=4)
    whole = batches(options)
    assert len(whole) == 2 and whole[0].std() > 0.1
    halves = [batches(options_of(data_dir=str(tmp_path), batch_size=2), rank=rank, world_size=2) for rank in (0, 1)]
    workers = batches(options_of(data_dir=str(tmp_path), batch_size=4, workers=2))
    for number, batch in enumerate(whole):
        assert torch.equal(batch, torch.cat([half[number] for half in halves]))
        assert torch.equal(batch, workers[number])


def test_damaged_files_are_skipped(tmp_path, caplog):
    write_jpegs(tmp_path, 10)
    whole = (tmp_path / '04.jpg').read_bytes()
    (tmp_path / '04.jpg').write_bytes(whole[:len(whole) // 2])
    (tmp_path / '05.jpg').write_bytes(b'no image')
    assert sum(len(batch) for batch in batches(options_of(data_dir=str(tmp_path)))) == 8
    assert caplog.text.count('cannot be read, another image replaces it') >= 1


def test_tar_file(tmp_path):
    write_jpegs(tmp_path / 'files', 10)
    with tarfile.open(tmp_path / 'images.tar', 'w') as tar:
        for path in sorted((tmp_path / 'files').iterdir()):
            tar.add(path, arcname=path.name)  # the names decide what is held out
    from_tar = batches(options_of(data_dir=str(tmp_path / 'images.tar')))
    from_folder = batches(options_of(data_dir=str(tmp_path / 'files')))
    assert len(from_tar) == 2
    for a, b in zip(from_tar, from_folder):
        assert torch.equal(a, b)


def test_images_that_are_no_files(tmp_path):
    """A dataset that hands out PIL images, which knows nothing of bytes."""
    write_images(tmp_path / 'train' / 'a', 6, 'L')
    write_images(tmp_path / 'val' / 'a', 2, 'L')
    options = options_of(dataset='torch/image_folder', data_dir=str(tmp_path), val_split='val')
    assert batches(options)[0].shape == (4, 3, 32, 32)
