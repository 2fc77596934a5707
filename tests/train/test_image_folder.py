"""The list of images in a folder: what can be read, each file once, and whether the rest is told."""
import os
import tarfile

import numpy as np
import pytest
from tiny_runs import write_images

from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.image_folder import ImageFolder
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.probes.probes import open_probe_data


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / 'images' / 'a', 3)
    write_images(tmp_path / 'images' / 'b10', 2, seed=1)
    write_images(tmp_path / 'images' / 'b9', 2, seed=2)
    return tmp_path / 'images'


def names(reader):
    return [os.path.relpath(path, reader.root) for path, _ in reader.samples]


def opened(folder, **options):
    return open_data(RunOptions(**{'data_dir': str(folder), **options}), 'RGB')


def test_plain_folder_is_listed_as_by_upstream(folder):
    (folder / 'a' / 'notes.txt').touch()
    reader = ImageFolder(str(folder))
    assert (reader.samples, reader.class_to_idx) == find_images_and_targets(str(folder))
    assert reader.left_out == 'files that are not read, by suffix: 1 .txt'
    only = ImageFolder(str(folder), class_map={'b9': 4})
    assert only.samples == find_images_and_targets(str(folder), class_to_idx={'b9': 4})[0] and len(only.samples) == 2
    assert ImageFolder(f'{folder}/', input_key='.txt').samples[0][0] == f'{folder}/a/notes.txt'


def test_links_that_lead_back(folder):
    """Upstream lists 2 to the power of 40 paths here."""
    before = names(ImageFolder(str(folder)))
    (folder / 'x').symlink_to('.')
    (folder / 'a' / 'y').symlink_to('..')
    reader = ImageFolder(str(folder))
    assert names(reader) == before
    assert 'links to folders that are read already' in reader.left_out


def test_each_file_once_by_its_own_name(folder):
    (folder / 'a' / '0-link.png').symlink_to('00.png')  # sorted before the file itself
    os.link(folder / 'a' / '01.png', folder / 'b9' / 'hard.png')
    (folder / '0-folder').symlink_to('b10')
    reader = ImageFolder(str(folder))
    assert len(reader.samples) == 7
    assert {'a/00.png', 'a/01.png', 'b10/00.png'} <= set(names(reader))
    assert '2 further names of images (b9/hard.png, ...)' in reader.left_out
    assert '1 link to a folder that is read already (0-folder)' in reader.left_out


def test_links_to_elsewhere_are_followed(folder, tmp_path):
    """A data set of links is one, a folder that is linked twice is there once, a broken link cannot be read later."""
    write_images(tmp_path / 'store', 3, seed=3)
    for place in ('one', 'two'):
        (folder / place).symlink_to(tmp_path / 'store')
    (folder / 'a' / 'missing.png').symlink_to('nowhere.png')
    found = names(ImageFolder(str(folder)))
    assert [name for name in found if name.startswith(('one', 'two'))] == ['one/00.png', 'one/01.png', 'one/02.png']
    assert 'a/missing.png' in found and len(found) == 11


def test_nothing_that_blocks_is_opened(folder):
    before = names(ImageFolder(str(folder)))
    os.mkfifo(folder / 'a' / 'x.jpg')
    (folder / 'b9' / 'y.jpg').symlink_to('../a/x.jpg')
    (folder / 'b9' / 'z.jpg').symlink_to('/dev/zero')
    data = opened(folder)
    assert '3 entries that are no regular files (a/x.jpg, ...)' in data.description
    assert names(ImageFolder(str(folder))) == before
    assert len(data.train) + len(data.held_out) == 7


@pytest.mark.parametrize('link', [os.link, os.symlink])
@pytest.mark.parametrize('within', ['', 'train'])
def test_held_out_images_are_not_trained_on(link, within, folder):
    """A validation folder made of links to training images, as people make one."""
    train = folder / within
    if within:
        (folder / 'a').rename(folder / 'kept')
        train.mkdir()
        (folder / 'kept').rename(train / 'a')
    (folder / 'val').mkdir()
    for name in ('00.png', '02.png'):
        link(train / 'a' / name, folder / 'val' / name)
    data = opened(folder)
    held_out = {os.stat(path).st_ino for path, _ in data.held_out.reader.samples}
    trained = {os.stat(path).st_ino for path, _ in data.train.reader.samples}
    assert len(held_out) == 2 and not held_out & trained
    assert len(trained) == (1 if within else 5)
    assert '2 names of held-out images outside val/ are not trained on' in data.description
    assert len(data.train.reader.inodes) == len(data.train)


def test_probe_is_not_tested_on_what_it_was_fitted_on(folder):
    (folder / 'val').mkdir()
    (folder / 'train').mkdir()
    for name in ('a', 'b9', 'b10'):
        (folder / name).rename(folder / 'train' / name)
        (folder / 'val' / name).mkdir()
        (folder / 'val' / name / 'x.png').symlink_to(f'../../train/{name}/00.png')
    data = open_probe_data(str(folder), 'RGB')
    assert len(data.test.labels) == 3 and len(data.train.labels) == 4
    assert data.left_out == ['left out 3 images in train/ that are also in val/']
    assert not any(path.endswith('00.png') for path, _ in data.train.images.reader.samples)
    assert [label for _, label in data.train.images.reader.samples] == data.train.labels.tolist()


@pytest.mark.parametrize('options, message', [
    (dict(dataset='folder'), "'folder' must begin with hfds/"),
    (dict(dataset='torch/image_folder'), 'the training images would also be held out'),
    (dict(train_num_samples=3), '--train-num-samples is for --dataset'),
])
def test_a_folder_by_another_name(options, message, folder):
    """timm takes the whole folder for each split where there are none: all that is held out is trained on."""
    with pytest.raises(UserError, match=message):
        opened(folder, **options)


def test_supervised_training_lists_as_upstream_does(folder):
    """Our list is that of pre-training alone."""
    os.link(folder / 'a' / '01.png', folder / 'b9' / 'hard.png')
    assert len(ImageDataset(str(folder))) == 8 and len(ImageFolder(str(folder)).samples) == 7
    assert np.asarray(ImageDataset(str(folder))[0][0]).shape == (72, 80, 3)


def test_files_of_an_archive_that_are_not_read(folder, tmp_path):
    """Counted by suffix, as those of a folder."""
    (folder / 'a' / 'table.csv').touch()
    (folder / 'a' / 'x.npy').touch()
    (folder / 'a' / '.hidden').touch()

    def description(mode='RGB'):
        with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
            archive.add(folder, arcname='images')
        return open_data(RunOptions(data_dir=str(tmp_path / 'x.tar')), mode).description

    assert description().endswith(
        'files that are not read, by suffix: 1 .csv, 1 .npy; arrays are read with --input-img-mode bands')
    assert description('bands').endswith('by suffix: 1 .csv')
    for path in folder.rglob('*.png'):
        path.unlink()
    with pytest.raises(UserError, match="^--data-dir: no image in '.*x.tar'; .* 1 .csv, 1 .npy; arrays are read with"):
        description()
