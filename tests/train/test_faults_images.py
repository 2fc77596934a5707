"""Fault 6: images that cannot be read are replaced, counted and named; too many end the run."""
import csv
import json
import logging
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from child_runs import run_child
from PIL import Image
from run_folders import epochs
from tiny_runs import write_images
from torch.utils.data import IterableDataset

from timm.data import ImageDataset, create_transform
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.data.decoding import ToMode
from timm.mim.pretrain.data.reading import ImageKey, ImageReader, KeyedImages
from timm.mim.pretrain.flags.run_options import DEFAULTS, RunOptions
from timm.mim.pretrain.errors import UserError


def truncated(path):
    write_images(path.parent / 'whole', 1)
    path.write_bytes((path.parent / 'whole' / '00.png').read_bytes()[:200])
    (path.parent / 'whole' / '00.png').unlink()
    (path.parent / 'whole').rmdir()


def empty(path):
    path.touch()


def bomb(path):
    """A few bytes that say they are 900 million pixels."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''))


def broken_link(path):
    path.symlink_to(path.with_name('nowhere.png'))


BROKEN = [truncated, empty, bomb, broken_link]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """12 images to train on and 4 that cannot be read, 10 to hold out and one that cannot be read."""
    folder = tmp_path_factory.mktemp('folder')
    write_images(folder / 'train', 12)
    write_images(folder / 'val', 10)
    for make in BROKEN:
        make(folder / 'train' / f'{make.__name__}.png')
    empty(folder / 'val' / 'empty.png')
    return folder


def keyed(folder, transform=np.asarray, max_pixels=DEFAULTS['max_pixels']):
    return KeyedImages(ImageDataset(str(folder)), ImageReader(transform, 'RGB', max_pixels=max_pixels), seed=3)


def test_another_image_takes_its_place(folder):
    images = keyed(folder / 'train')
    whole = {images[ImageKey(0, i, i)][0].tobytes() for i in range(12)}
    for index in range(12, 16):
        image, found = images[ImageKey(0, 7, index)]
        assert found == ~index and image.tobytes() in whole
        assert np.array_equal(images[ImageKey(0, 7, index)][0], image)  # the same one each time
    drawn = {images[ImageKey(epoch, 7, 14)][0].tobytes() for epoch in range(20)}
    assert len(drawn) > 6  # not always its neighbour
    assert [images[ImageKey(0, i, i)][1] for i in range(12)] == list(range(12))


def test_workers_agree_on_it(folder):
    def batches(workers):
        options = RunOptions(**{'data_dir': str(folder), 'batch_size': 4, 'workers': workers})
        config = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', mode='RGB')
        return list(create_train_loader(open_data(options, 'RGB').train, options, config, torch.device('cpu')))
    for (a, i), (b, j) in zip(batches(0), batches(2)):
        assert torch.equal(a, b) and torch.equal(i, j)


def test_warnings_name_the_first(folder, caplog):
    images = keyed(folder / 'train')
    for index in range(12, 16):
        images[ImageKey(0, 7, index)]
    named = [record.getMessage() for record in caplog.records if 'another image replaces it' in record.getMessage()]
    assert 3 == len(named) and all('.png' in line and ': ' in line for line in named)


@pytest.mark.parametrize('mode, name', [('CMYK', 'x.jpg'), ('P', 'x.png'), ('L', 'x.png'), ('RGBA', 'x.png')])
def test_other_modes_are_no_fault(mode, name, tmp_path):
    write_images(tmp_path, 1)
    image = Image.open(tmp_path / '00.png').convert(mode)
    (tmp_path / '00.png').unlink()
    image.save(tmp_path / name)
    found, index = keyed(tmp_path)[ImageKey(0, 0, 0)]
    assert index == 0
    assert np.array_equal(found, np.asarray(Image.open(tmp_path / name).convert('RGB')))


def test_16_bits_keep_their_levels(tmp_path):
    """PIL clips them: nearly every pixel would be white."""
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(levels).save(tmp_path / 'x.png')
    found, _ = keyed(tmp_path)[ImageKey(0, 0, 0)]
    assert np.array_equal(found, np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2))
    asked_for = ToMode('I;16')(Image.open(tmp_path / 'x.png'))
    assert np.array_equal(np.asarray(asked_for), levels)


def test_upstreams_dataset_skips_a_bomb(folder):
    """For training with labels, which takes upstream's own way."""
    dataset = ImageDataset(str(folder / 'train'), transform=np.asarray)
    bombs = [i for i in range(16) if 'bomb' in dataset.filename(i)]
    following = dataset[(bombs[0] + 1) % 16][0]
    assert np.array_equal(dataset[bombs[0]][0], following)


def set_size(data, width, height):
    """Give a JPEG file another size in its header."""
    place = data.index(b'\xff\xc0') + 5
    return data[:place] + struct.pack('>HH', height, width) + data[place + 4:]


@pytest.mark.parametrize('name, transform', [
    ('x.jpg', create_transform(64, is_training=True, use_prefetcher=True, color_jitter=None)),  # decoded to a tensor
    ('x.jpg', np.asarray),
    ('x.png', np.asarray),
])
def test_limit_of_pixels(name, transform, tmp_path, monkeypatch, caplog):
    """By the header, before anything is decoded; up to the limit images are read, above PIL's own limit too."""
    write_images(tmp_path, 3)
    pixels = Image.open(tmp_path / '02.png').resize((100, 50))
    (tmp_path / '02.png').unlink()
    pixels.save(tmp_path / name)
    own_limit = Image.MAX_IMAGE_PIXELS

    def found(limit):
        images = keyed(tmp_path, transform, limit)
        assert (images.reader.on_tensors is not None) == (transform is not np.asarray)
        return images[ImageKey(0, 0, 2)][1]
    assert found(6000) == 2 and found(0) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # PIL would refuse all of them
        assert found(6000) == 2 and found(0) == 2
        assert Image.MAX_IMAGE_PIXELS == 100
    for other in ('00.png', '01.png'):  # others take its place, which have 80 x 72 pixels
        Image.open(tmp_path / other).resize((10, 10)).save(tmp_path / other)
    assert found(5000) == 2
    assert found(4999) == ~2
    assert '5000 pixels exceed --max-pixels 4999' in caplog.text
    assert Image.MAX_IMAGE_PIXELS == own_limit


def test_large_image_takes_no_memory(tmp_path):
    """13,000 x 13,000 pixels in a few bytes; decoding them took 2.2 GB."""
    write_images(tmp_path, 1)
    Image.new('RGB', (64, 64)).save(tmp_path / 'x.jpg')
    (tmp_path / 'x.jpg').write_bytes(set_size((tmp_path / 'x.jpg').read_bytes(), 13000, 13000))
    images = keyed(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert images[ImageKey(0, 0, 1)][1] == ~1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_limit_does_not_reach_streams(tmp_path):
    options = RunOptions(**{'max_pixels': 100, 'batch_size': 2})
    config = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', mode='RGB')

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())
    with pytest.raises(UserError, match='--max-pixels has no effect on a stream'):
        create_train_loader(Stream(), options, config, torch.device('cpu'))


FLAGS = '--experiment run --epochs 2 --lr 1e-3 --log-interval 1'


def test_they_are_counted(folder, train, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(f'--data-dir {folder} --output {tmp_path} {FLAGS} --max-unreadable 0.3')
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        assert [float(row['train_unreadable']) for row in csv.DictReader(f)] == [0.25, 0.25]
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert sum(line.get('unreadable', 0) for line in lines) == 2  # batches of 4, twice 4 images
    assert 'epoch 2: 25.00% of the images so far cannot be read' in caplog.text
    assert '10 images with 4 mask(s) each' in (tmp_path / 'run' / 'train.log').read_text()


@pytest.mark.parametrize('flags, message', [
    ('', 'of the images of an epoch cannot be read'),
    ('--max-unreadable 0.05', '1 of the 11 held-out images cannot be read'),
    ('--data-dir {broken} --max-unreadable 1 --workers 1', '10 images, drawn at random, cannot be read'),
])
def test_too_many(flags, message, folder, tmp_path):
    write_images(tmp_path / 'broken' / 'val', 1)
    for i in range(8):
        empty(tmp_path / 'broken' / f'{i}.png')
    flags = f'--data-dir {folder} --output {tmp_path} {FLAGS} {flags.format(broken=tmp_path / "broken")}'
    assert run_child(flags, tmp_path / 'log') == 1
    errors = [line for line in (tmp_path / 'log').read_text().splitlines() if 'error:' in line]
    assert len(errors) == 1 and message in errors[0] and 'Traceback' not in (tmp_path / 'log').read_text()
    assert not (tmp_path / 'run' / 'summary.csv').exists() or epochs(tmp_path / 'run') == []
