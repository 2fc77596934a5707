"""Images are held out by their names, and a run that goes on tells when they have changed."""
import logging
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_folders import load
from test_pretrain_data import options_of
from tiny_runs import write_images
from torch.utils.data import Subset

from timm.mim.pretrain.checkpoints import Checkpoint
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.image_folder import describe_changes, draw_held_out, fingerprint, image_names
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.resume import check_same_data

NAMES = [f'class{i % 7}/image {i}.jpg' for i in range(1000)]


def held_out(names, count=50):
    return {names[i] for i in draw_held_out(names, count)[1]}


def test_one_image_more_or_less():
    """It takes the place of one other image at most."""
    generator = random.Random(0)
    for _ in range(50):
        left_out = generator.choice(NAMES)
        fewer = [name for name in NAMES if name != left_out]
        assert len(held_out(NAMES) - held_out(fewer)) == (left_out in held_out(NAMES))
        assert len(held_out(NAMES) & held_out([*fewer, f'{left_out}.new.jpg'])) >= 48


def test_order_and_time_change_nothing():
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    assert held_out(shuffled) == held_out(NAMES)
    # written down when this came into being: later versions choose the same
    assert sorted(held_out(NAMES, 3)) == ['class1/image 148.jpg', 'class5/image 873.jpg', 'class6/image 41.jpg']


def test_parts_are_whole():
    train, kept = draw_held_out(NAMES, 50)
    assert sorted(train + kept) == list(range(1000)) and len(kept) == 50
    assert train == sorted(train) and kept == sorted(kept)


def test_folders_elsewhere_hold_out_the_same(tmp_path):
    for place in ('one', 'two/deeper'):
        write_images(tmp_path / place / 'a', 30)
    data = [open_data(options_of(data_dir=str(tmp_path / place)), 'RGB') for place in ('one', 'two/deeper/')]
    assert image_names(data[0].held_out) == image_names(data[1].held_out) and len(data[0].held_out) == 2
    assert all(name.startswith('a/') for name in image_names(data[0].train))
    assert fingerprint(*data[0][:2]) == fingerprint(*data[1][:2])


def test_names_in_tar_files(tmp_path):
    import tarfile
    write_images(tmp_path / 'images', 6)
    with tarfile.open(tmp_path / 'images.tar', 'w') as archive:
        for path in sorted((tmp_path / 'images').iterdir()):
            archive.add(path, f'a/{path.name}')
    data = open_data(options_of(data_dir=str(tmp_path / 'images.tar')), 'RGB')
    assert sorted(image_names(data.train) + image_names(data.held_out)) == [f'a/{i:02d}.png' for i in range(6)]


def test_datasets_without_names_are_counted():
    images = torch.utils.data.TensorDataset(torch.zeros(7))
    assert image_names(images) is None and image_names(Subset(images, [1])) is None
    assert fingerprint(images, Subset(images, [1, 2])) == dict(
        train=dict(count=7, names=None), held_out=dict(count=2, names=None))


ONE, MORE, OTHERS = (
    dict(train=dict(count=count, names=names), held_out=dict(count=2, names='a'))
    for count, names in ((5, 'a'), (6, 'b'), (5, 'c')))


def checkpoint_of(update, **more):
    run = dict(update=update, updates_per_epoch=4, images_per_update=1, means={}, **more)
    return Checkpoint(Path('x'), dict(run=run))


def test_what_is_told(caplog):
    assert describe_changes(ONE, ONE) == ''
    check_same_data(checkpoint_of(8, data=ONE), ONE)
    check_same_data(checkpoint_of(7, data=ONE), ONE)
    check_same_data(Checkpoint(Path('x'), {}), ONE)  # of another program
    assert caplog.text == ''
    with caplog.at_level(logging.WARNING):
        check_same_data(checkpoint_of(8, data=ONE), MORE)
        assert '6 images to train on, which were 5' in caplog.text
        check_same_data(checkpoint_of(8, data=ONE), OTHERS)
        assert '5 images to train on, as before, with other names' in caplog.text
        check_same_data(checkpoint_of(7), ONE)
        assert 'is of an earlier version' in caplog.text
    for changed in (MORE, OTHERS):
        with pytest.raises(UserError, match='within an epoch of other images'):
            check_same_data(checkpoint_of(7, data=ONE), changed)


def test_run_with_one_image_more(train, tmp_path, caplog):
    write_images(tmp_path / 'images', 16)
    flags = f'--data-dir {tmp_path}/images --output {tmp_path} --experiment run --epochs 2 --lr 1e-3'
    train(f'{flags} --stop-epoch 1')
    saved = load(tmp_path / 'run' / 'last.pth.tar')['run']['data']
    assert saved['train']['count'] == 15 and saved['held_out']['count'] == 1
    Image.new('RGB', (80, 72)).save(tmp_path / 'images' / '99.png')
    with caplog.at_level(logging.WARNING):
        train(f'{flags} --resume auto')
    assert '16 images to train on, which were 15' in caplog.text and 'held out' not in caplog.text.split('15')[-1][:10]
