"""Which images are trained on and which held out, in what order, with what augmentation."""
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import write_images

from timm.mim.pretrain.data.datasets import HELD_OUT_LIMIT, file_names, image_mode, open_data
from timm.mim.pretrain.hold_out import load_held_out
from timm.mim.pretrain.data.loading import EpochSampler, create_train_loader
from timm.mim.pretrain.data.reading import sample_seed
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.recipes import RECIPES

CPU = torch.device('cpu')


def options_of(**values):
    return RunOptions(**{**RECIPES['simmim'], 'mim': 'simmim', 'batch_size': 4, 'workers': 0, **values})


def config_of(channels=3, mode='RGB'):
    return dict(
        input_size=(channels, 32, 32), mean=(0.5,) * channels, std=(0.25,) * channels, interpolation='bicubic',
        crop_pct=1.0, mode=mode)


def all_names(dataset):
    return {Path(name).as_posix() for name in file_names(dataset, limit=10 ** 6)}


def test_flat_folder(tmp_path):
    write_images(tmp_path, 40)
    data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
    train, held_out = all_names(data.train), all_names(data.held_out)
    assert len(held_out) == 2 and not train & held_out  # 5 % of 40
    assert train | held_out == {f'{i:02d}.png' for i in range(40)}
    again = open_data(options_of(data_dir=str(tmp_path), seed=7), 'RGB')
    assert all_names(again.held_out) == held_out  # runs with other seeds can be compared


def test_nested_folder_without_labels(tmp_path):
    write_images(tmp_path, 2)
    write_images(tmp_path / 'a', 3)
    write_images(tmp_path / 'b' / 'c' / 'd', 4)
    data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
    assert len(data.train) + len(data.held_out) == 9


@pytest.mark.parametrize('train', ['train', 'other'])
@pytest.mark.parametrize('validation', ['val', 'validation'])
def test_validation_folder_is_held_out(train, validation, tmp_path):
    write_images(tmp_path / train, 5)
    write_images(tmp_path / validation / 'x', 3)
    data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
    assert len(data.train) == 5 and len(data.held_out) == 3
    assert not [name for name in all_names(data.train) if name.startswith(validation)]


def test_named_splits(tmp_path):
    write_images(tmp_path / 'summer', 5)
    write_images(tmp_path / 'winter', 3)
    data = open_data(options_of(data_dir=str(tmp_path), train_split='summer', val_split='winter'), 'RGB')
    assert len(data.train) == 5 and len(data.held_out) == 3


def test_unreadable_image_is_not_replaced_by_a_held_out_one(tmp_path):
    """timm takes the next image in the list instead, whatever that is."""
    write_images(tmp_path, 20)
    held_out = open_data(options_of(data_dir=str(tmp_path)), 'RGB').held_out
    number = int(held_out.reader.samples[0][0][-6:-4])
    (tmp_path / f'{number - 1:02d}.png').write_bytes(b'no image')
    data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
    data.train.transform = data.held_out.transform = np.asarray
    broken = next(i for i, (path, _) in enumerate(data.train.reader.samples) if path.endswith(f'{number - 1:02d}.png'))
    assert not np.array_equal(data.train[broken][0], data.held_out[0][0])


def test_dataset_of_torchvision(tmp_path):
    """Any dataset that timm reads, here one that knows nothing of image modes."""
    write_images(tmp_path / 'train' / 'a', 6, 'L')
    write_images(tmp_path / 'val' / 'a', 2, 'L')
    options = options_of(dataset='torch/image_folder', data_dir=str(tmp_path), val_split='val')
    data = open_data(options, 'RGB')
    batch, _ = next(iter(create_train_loader(data.train, options, config_of(), CPU)))
    assert batch.shape == (4, 3, 32, 32)
    images, numbers, _ = load_held_out(data.held_out, options, config_of(), CPU)
    assert images.shape == (2, 3, 32, 32) and numbers.tolist() == [0, 1]


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (2, 'LA'), (3, 'RGB'), (4, 'RGBA')])
def test_mode_follows_channels(channels, mode, tmp_path):
    assert image_mode(channels) == mode
    write_images(tmp_path, 8, 'RGBA')
    options = options_of(data_dir=str(tmp_path))
    data = open_data(options, mode)
    batch, _ = next(iter(create_train_loader(data.train, options, config_of(channels, mode), CPU)))
    assert batch.shape == (4, channels, 32, 32)


def test_other_mode_with_the_same_bands():
    assert image_mode(4, 'CMYK') == 'CMYK'


def test_held_out_images_are_normalised(tmp_path):
    for i in range(2):
        (tmp_path / 'val').mkdir(exist_ok=True)
        Image.new('RGB', (50, 50), (51, 102, 204)).save(tmp_path / 'val' / f'{i}.png')
    write_images(tmp_path / 'train', 2)
    options = options_of(data_dir=str(tmp_path))
    images, *_ = load_held_out(open_data(options, 'RGB').held_out, options, config_of(), CPU)
    expected = torch.tensor([51, 102, 204]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(images, ((expected - 0.5) / 0.25).expand(2, 3, 32, 32))


def test_many_held_out_images_are_sampled_evenly(tmp_path):
    class Numbers(torch.utils.data.Dataset):
        transform = None

        def __len__(self):
            return 3 * HELD_OUT_LIMIT

        def __getitem__(self, index):
            return self.transform(Image.new('RGB', (32, 32), (index % 256, index // 256, 0))), 0

    shares = [load_held_out(Numbers(), options_of(batch_size=64), config_of(), CPU, rank, 2) for rank in range(2)]
    images = {n: image for part, numbers, _ in shares for n, image in zip(numbers.tolist(), part)}
    assert sorted(images) == list(range(HELD_OUT_LIMIT))
    for n, image in images.items():
        low, high, _ = ((image[:, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist()
        assert low + 256 * high == 3 * n


def keys_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_epoch_has_every_image_once():
    keys = keys_of(EpochSampler(12, batch_size=4))
    assert [key.position for key in keys] == list(range(12))
    assert sorted(key.index for key in keys) == list(range(12))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(key.index for key in keys_of(EpochSampler(12, batch_size=4, seed=seed), epoch))
              for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert keys_of(EpochSampler(12, batch_size=4), 5) == keys_of(EpochSampler(12, batch_size=4), 5)


@pytest.mark.parametrize('num_images, batch_size, steps, repeats, expected', [
    (12, 4, 1, 0, 12),
    (13, 4, 1, 1, 12),  # whole batches only
    (12, 4, 2, 1, 8),  # whole updates only
    (12, 4, 1, 2.5, 28),
    (5, 16, 1, 0, 16),  # too few for a batch: repeated until they fill one
])
def test_length_of_an_epoch(num_images, batch_size, steps, repeats, expected):
    sampler = EpochSampler(num_images, batch_size, steps_per_update=steps, repeats=repeats)
    keys = keys_of(sampler)
    assert len(keys) == len(sampler) == expected
    counts = np.bincount([key.index for key in keys], minlength=num_images)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('world_size, batch_size, steps', [(1, 8, 1), (2, 4, 1), (4, 2, 1), (1, 4, 2), (2, 2, 2)])
def test_processes_share_the_batch_of_one(world_size, batch_size, steps):
    whole = keys_of(EpochSampler(24, batch_size=8, seed=3), 2)
    parts = [keys_of(EpochSampler(24, batch_size, steps, seed=3, rank=rank, world_size=world_size), 2)
             for rank in range(world_size)]
    together = []
    for start in range(0, len(parts[0]), batch_size):
        for part in parts:
            together += part[start:start + batch_size]
    assert together == whole


def test_augmentation_depends_on_epoch_and_position_alone(tmp_path):
    write_images(tmp_path, 16)

    def batches(epoch, rank=0, world_size=1, **values):
        options = options_of(data_dir=str(tmp_path), scale=[0.1, 1.0], **values)
        loader = create_train_loader(open_data(options, 'RGB').train, options, config_of(), CPU, rank, world_size)
        loader.sampler.set_epoch(epoch)
        return [images for images, _ in loader]

    first = torch.cat(batches(1))
    torch.rand(5)  # the state of the global generator does not matter
    assert torch.equal(torch.cat(batches(1)), first)
    assert torch.equal(torch.cat(batches(1, workers=2)), first)
    assert not torch.equal(torch.cat(batches(2)), first)
    assert not torch.equal(torch.cat(batches(1, seed=1)), first)
    left, right = (batches(1, rank, 2, batch_size=2) for rank in range(2))
    assert torch.equal(torch.cat([image for pair in zip(left, right) for image in pair]), first)


def test_repeated_images_are_cropped_anew(tmp_path):
    write_images(tmp_path, 2)
    options = options_of(data_dir=str(tmp_path), scale=[0.1, 0.5], epoch_repeats=8)
    images = torch.cat([batch for batch, _ in islice(
        create_train_loader(open_data(options, 'RGB').train, options, config_of(), CPU), 2)])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 8


def test_seeds_of_images_are_those_of_numpy():
    """Whatever the size of a number."""
    for key in ((0, 0, 0), (3, 1, -1), (2 ** 32 - 1, 7, 2 ** 32 - 2), (2 ** 32, 0, 5), (2 ** 64 + 3, 2, 2 ** 32 + 1)):
        seed, epoch, position = key
        expected = np.random.SeedSequence((seed, epoch, position + 1)).generate_state(1)[0]
        assert sample_seed(*key) == expected
