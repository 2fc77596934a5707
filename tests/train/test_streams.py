"""Streams: WebDataset shards and Hugging Face datasets, without labels, without a validation split, killed, resumed."""
import io
import random
import re
import signal
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from child_runs import at_update, kill, start_ranks
from run_folders import assert_equal_runs
from safetensors.torch import load_file
from test_pretrain_data import CPU, config_of, options_of
from test_tensor_transforms import encode, photograph
from tiny_runs import SUPERVISED

from timm.mim.pretrain.data.bands import measure_bands
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.loading import batches_of_epoch, create_train_loader
from timm.mim.pretrain.data.reading import sample_seed, seed_everything
from timm.mim.pretrain.data.streams import Stream, StreamBatches, is_held_out, shuffled
from timm.mim.pretrain.errors import UserError


def image_of(number, size=(40, 36)):
    """A photograph whose brightness tells its number."""
    return photograph(size).point(lambda level: level // 4 + 3 * number)


def write_shards(folder, shards=4, each=10, suffix='jpg', name='data', label=None):
    """Write shards, without labels unless a function gives that of a number. Some samples have a further file."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f'{name}-{shard:02d}.tar', 'w') as archive:
            for i in range(each):
                number = shard * each + i
                files = {suffix: encode(image_of(number), 'JPEG' if suffix == 'jpg' else suffix.upper())}
                if i % 3 == 0:
                    files['json'] = b'{}'
                if label is not None:
                    files['cls'] = str(label(number)).encode()
                for kind, content in files.items():
                    info = tarfile.TarInfo(f'{number:04d}.{kind}')
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp('shards'))


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """A data set of two parquet files, with labels and a train split alone."""
    import datasets
    folder = tmp_path_factory.mktemp('hub')
    features = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=['dark', 'bright'])))
    for part in range(2):
        rows = [dict(image=dict(bytes=encode(image_of(n if n % 2 else n + 40)), path=None), label=(n + 1) % 2)
                for n in range(part * 12, part * 12 + 12)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(
            folder / f'train-{part:05d}-of-00002.parquet')
    return folder


def wds(folder, **values):
    return options_of(dataset='wds/', data_dir=str(folder), **values)


def keys(stream, count, **reader):
    samples = stream.samples(seed=0, **{**dict(epoch=0, reader=0, readers=1), **reader})
    return [next(samples).key for _ in range(count)]


def test_train_split_alone(shards):
    """`wds/` failed with "split validation not found"."""
    data = open_data(wds(shards), 'RGB')
    held_out = data.held_out.names
    assert 'no validation split, so 5.0% of the keys are held out' in data.description
    assert f'{len(held_out)} of them measured' in data.description and '40 images in 4 shards' in data.description
    trained = keys(data.train, 40 - len(held_out))
    assert held_out and sorted(trained + held_out) == [f'{n:04d}' for n in range(40)]
    assert all(is_held_out(key, 0.05) for key in held_out)  # a new shard changes nothing for the others


def test_share_of_keys():
    share = sum(is_held_out(f'sample {i}', 0.05) for i in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.005)  # 3 standard deviations


def test_splits_by_name_by_address_and_none(tmp_path):
    write_shards(tmp_path / 'named', 2, name='train')
    write_shards(tmp_path / 'named', 1, each=3, name='val')
    data = open_data(wds(tmp_path / 'named'), 'RGB')
    assert len(data.train) == 20 and len(data.held_out) == 3 and 'of validation held out' in data.description
    one = open_data(options_of(dataset=f'wds/{tmp_path}/named/train-{{00..01}}.tar|20', val_split=''), 'RGB')
    assert len(one.train) == 20 and sorted(keys(one.train, 20)) == [f'{n:04d}' for n in range(20)]
    assert 'no image is held out: what is called held out below is measured on 20 images' in one.description
    for flag, values in (('--val-split', dict(val_split='test')), ('--train-split', dict(train_split='test'))):
        with pytest.raises(UserError, match=f"{flag}: wds/ has no split 'test'"):
            open_data(wds(tmp_path / 'named', **values), 'RGB')


def test_folder_with_nothing_held_out(images):
    data = open_data(options_of(data_dir=str(images), val_split=''), 'RGB')
    assert len(data.train) == 16 == len(data.held_out) and 'no image is held out' in data.description


def test_damaged_and_missing_shards(tmp_path):
    write_shards(tmp_path, 2)
    content = (tmp_path / 'data-01.tar').read_bytes()
    (tmp_path / 'data-01.tar').write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match='data-01.tar.*truncated'):
        open_data(wds(tmp_path), 'RGB')
    with pytest.raises(UserError, match="no shard '.*data-07.tar'"):
        open_data(wds(tmp_path, train_split='data-07.tar'), 'RGB')
    with pytest.raises(UserError, match='no .tar file'):
        open_data(wds(tmp_path / 'nothing'), 'RGB')


def test_readers_share_shards(shards):
    """Two ranks see different shards; with more readers than shards, each image belongs to one of them all the same."""
    stream = Stream(open_data(wds(shards), 'RGB').train.shards, 40, held_out=0., num_workers=0)
    for readers, expected in ((1, 40), (2, 20), (4, 10), (8, 5)):
        parts = [keys(stream, expected, reader=reader, readers=readers) for reader in range(readers)]
        assert Counter(key for part in parts for key in part) == Counter(f'{n:04d}' for n in range(40))
        if readers == 2:
            assert [len({int(key) // 10 for key in part}) for part in parts] == [2, 2]
    assert keys(stream, 40) != keys(stream, 40, epoch=1) and keys(stream, 40) == keys(stream, 40)


class Draws:
    """In place of a reader of images: returns the encoded image, and a random number that the seed decides."""

    def read(self, image):
        return image, torch.rand(()).item()

    def finish(self, image, draw):
        return image, draw


def test_two_ranks_read_all_images_once_with_the_seeds_of_their_positions(shards):
    stream = Stream(open_data(wds(shards), 'RGB').train.shards, 40, held_out=0., num_workers=0)
    images, draws = [], {}
    for rank in range(2):
        batches = StreamBatches(stream, Draws(), 5, num_batches=4, seed=3, rank=rank, world_size=2)
        for number, ((image, draw), _) in enumerate(batches):
            images.append(bytes(image))
            batch, place = divmod(number, 5)
            draws[(batch * 2 + rank) * 5 + place] = draw  # batch n of both ranks together, then the next
    assert len(images) == len(set(images)) == 40
    for position, draw in draws.items():
        seed_everything(sample_seed(3, 0, position))
        assert draw == torch.rand(()).item()


def test_shuffle_buffer():
    found = list(shuffled(iter(range(100)), 10, random.Random(0)))
    assert sorted(found) == list(range(100)) and found != list(range(100))
    assert all(place >= number - 10 for place, number in enumerate(found))  # none comes before it was read


def images_of(options, epoch=0, first=0, mode='RGB', **config):
    loader = create_train_loader(open_data(options, mode).train, options, {**config_of(mode=mode), **config}, CPU)
    return [images for images, _ in batches_of_epoch(loader, epoch, first)]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_stream_goes_on_with_the_same_images(workers, shards):
    """Whatever the batch and the number of workers: order, crops and flips are those of the unbroken run."""
    options = wds(shards, workers=workers, scale=[0.3, 1.0], batch_size=5, epoch_repeats=2)
    whole = images_of(options, epoch=1)
    assert len(whole) == 15 and len({batch.sum().item() for batch in whole}) == 15
    for first in (1, 2, 7) if workers else (4,):
        rest = images_of(options, epoch=1, first=first)
        assert len(rest) == 15 - first
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[first:]))


def test_unreadable_images_are_counted_and_replaced(tmp_path, caplog):
    write_shards(tmp_path, 1, 20)
    content = (tmp_path / 'data-00.tar').read_bytes()
    start = content.index(b'\xff\xd8\xff', content.index(b'0007.jpg'))
    (tmp_path / 'data-00.tar').write_bytes(content[:start] + b'no' + content[start + 2:])
    options = wds(tmp_path, val_split='', batch_size=20)
    loader = create_train_loader(open_data(options, 'RGB').train, options, config_of(), CPU)
    images, found = next(batches_of_epoch(loader, 0))
    assert (found < 0).sum() == 1 and images.shape[0] == 20 and "'0007' cannot be read" in caplog.text
    options = wds(tmp_path, val_split='', batch_size=5)
    whole = images_of(options)
    assert all(torch.equal(a, b) for a, b in zip(images_of(options, first=2), whole[2:]))


@pytest.mark.parametrize('suffix', ['npy', 'tif'])
def test_thirteen_bands(suffix, tmp_path):
    """Arrays and TIFF files of any number of bands in shards: measured, shuffled and resumed as photographs are."""
    values = np.random.default_rng(0).integers(0, 10_000, (12, 13, 40, 36), dtype=np.uint16)
    for shard in range(2):
        with tarfile.open(tmp_path / f'{shard}.tar', 'w') as archive:
            for number in range(shard * 6, shard * 6 + 6):
                file = io.BytesIO()
                (np.save if suffix == 'npy' else pytest.importorskip('tifffile').imwrite)(file, values[number])
                info = tarfile.TarInfo(f'{number:04d}.{suffix}')
                info.size = file.tell()
                archive.addfile(info, io.BytesIO(file.getvalue()))
    options = wds(tmp_path, in_chans=13, val_split='', scale=[1., 1.], ratio=[36 / 40, 36 / 40], hflip=0., batch_size=4)
    statistics = measure_bands(open_data(options, 'bands').train, 13)
    assert statistics.count == 12
    np.testing.assert_allclose(statistics.mean, values.mean((0, 2, 3)), rtol=1e-4)
    config = dict(mean=statistics.mean, std=statistics.std, input_size=(13, 40, 36))
    whole = images_of(options, mode='bands', **config)
    assert len(whole) == 3 and whole[0].shape == (4, 13, 40, 36)
    expected = torch.from_numpy(values.astype(np.float32))
    units = [torch.tensor(value).view(13, 1, 1) for value in (statistics.mean, statistics.std)]
    found = {next(i for i in range(12) if torch.allclose(image * units[1] + units[0], expected[i], atol=1))
             for image in torch.cat(whole)}
    assert found == set(range(12))
    assert all(torch.equal(a, b) for a, b in zip(images_of(options, first=2, mode='bands', **config), whole[2:]))


def test_hub_dataset(hub):
    options = options_of(dataset=f'hfids/{hub}', train_num_samples=24)
    data = open_data(options, 'RGB')
    stream = data.train
    assert len(stream.shards) == 2 and len(data.held_out) + len(set(keys(stream, 24 - len(data.held_out)))) == 24
    stream = Stream(stream.shards, 24, held_out=0., num_workers=0)
    halves = [set(keys(stream, 12, reader=reader, readers=2)) for reader in range(2)]
    assert [len(half) for half in halves] == [12, 12] and not halves[0] & halves[1]
    workers = images_of(options_of(dataset=f'hfids/{hub}', train_num_samples=24, workers=2, val_split='', batch_size=4))
    assert len({image.sum().item() for image in torch.cat(workers)}) == 24  # each worker reads shards of its own
    with pytest.raises(UserError, match='--train-num-samples'):
        open_data(options_of(dataset=f'hfids/{hub}'), 'RGB')
    with pytest.raises(UserError, match='--input-key'):
        open_data(options_of(dataset=f'hfids/{hub}', train_num_samples=24, input_key='picture'), 'RGB')


RUN = '--img-size 32 --epochs 2 --lr 1e-3 --log-interval 1 --recovery-interval 1 --resume auto --experiment run'


def test_two_processes_killed_and_resumed(shards, tmp_path):
    """As if nothing had happened, and both see images of their own."""
    flags = f'--dataset wds/ --data-dir {shards} {RUN} --workers 1'

    def run(name, faults=None):
        ranks = start_ranks(2, f'{flags} --output {tmp_path / name}', tmp_path / f'{name}-log', faults)
        return [rank.wait() for rank in ranks], ''.join(rank.output for rank in ranks)

    codes, output = run('whole')
    assert codes == [0, 0], output
    codes, output = run('killed', {rank: at_update(7, kill) for rank in range(2)})  # in the second epoch of 4 updates
    assert codes == [-signal.SIGKILL] * 2, output
    codes, output = run('killed')
    assert codes == [0, 0] and re.search('resuming after step [567]', output), output
    assert_equal_runs(tmp_path / 'whole' / 'run', tmp_path / 'killed' / 'run')


def test_other_readers_within_an_epoch_are_refused(shards, train, tmp_path):
    flags = f'--dataset wds/ --data-dir {shards} {RUN} --output {tmp_path}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('timm.mim.pretrain.run_loop.RunLoop.evaluate', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(flags)
    with pytest.raises(SystemExit) as stop:
        train(f'{flags} --workers 2')
    assert stop.value.code == 2


def fine_tuned(train, run, output, flags):
    """Fine-tune the encoder of a run, and return whether it began with its weights."""
    train(f'{SUPERVISED} --pretrained-path {run}/encoder.safetensors {flags} --output {output} --experiment tuned '
          '--opt sgd --lr 1e-12 --epochs 1', tiny=False)
    weights = torch.load(output / 'tuned' / 'last.pth.tar', weights_only=False)['state_dict']
    return all(torch.allclose(weights[k], v, atol=1e-6) for k, v in load_file(run / 'encoder.safetensors').items())


def test_from_a_tar_stream_to_a_fine_tuned_model(shards, labelled, train, tmp_path):
    train(f'--dataset wds/ --data-dir {shards} --img-size 32 --epochs 1 --output {tmp_path} --experiment run')
    assert 'no validation split' in (tmp_path / 'run' / 'train.log').read_text()
    assert fine_tuned(train, tmp_path / 'run', tmp_path, f'--data-dir {labelled}')


def test_from_labelled_shards_without_a_validation_split_to_a_fine_tuned_model(train, tmp_path):
    """Both find the shards of a folder by themselves; training with labels must be told that nothing is held out."""
    write_shards(tmp_path / 'shards', 2, label=lambda number: number % 2)
    stream = f'--dataset wds/ --data-dir {tmp_path}/shards'
    train(f'{stream} --img-size 32 --epochs 1 --output {tmp_path} --experiment run')
    assert fine_tuned(train, tmp_path / 'run', tmp_path, f"{stream} --val-split ''")
    with pytest.raises(UserError, match="no shard in .* has 'validation' in its name.*give --val-split ''"):
        train(f'{SUPERVISED} {stream} --output {tmp_path}', tiny=False)


def test_from_a_streaming_dataset_to_a_fine_tuned_model(hub, train, tmp_path):
    """Fine-tuned on the same stream, which has labels."""
    stream = f'--dataset hfids/{hub} --train-num-samples 24'
    train(f'{stream} --img-size 32 --epochs 1 --output {tmp_path} --experiment run')
    assert fine_tuned(train, tmp_path / 'run', tmp_path, f"{stream} --val-split ''")


def test_from_webp_to_a_fine_tuned_model(train, tmp_path):
    for split, count in (('train', 6), ('validation', 2)):
        for name, number in (('dark', 0), ('bright', 50)):
            (tmp_path / 'webp' / split / name).mkdir(parents=True)
            for i in range(count):
                image_of(number + i).save(tmp_path / 'webp' / split / name / f'{i}.webp')
    train(f'--data-dir {tmp_path}/webp --img-size 32 --epochs 1 --output {tmp_path} --experiment run')
    assert '12 images to train on, 4 in validation/' in (tmp_path / 'run' / 'train.log').read_text()
    assert fine_tuned(train, tmp_path / 'run', tmp_path, f'--data-dir {tmp_path}/webp')
