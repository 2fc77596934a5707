"""Images of any number of bands: how they are read, normalised, cropped and shown, from pre-training to validation."""
import io
import json
import shlex
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file
from test_pretrain_data import CPU, options_of
from tiny_runs import SUPERVISED

from timm.data import create_transform
from timm.mim.output import View
from timm.mim.pretrain.data.augmenting import ResizeAndCenterCrop, on_tensors
from timm.mim.pretrain.data.bands import check_shown_bands, measure_bands, read_bands
from timm.mim.pretrain.data.datasets import measure_statistics, open_data
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.errors import UserError
from timm.mim.visualize import save_views

BANDS = 13


def saved(write, *args, **kwargs):
    file = io.BytesIO()
    write(file, *args, **kwargs)
    file.seek(0)
    return file


def values(dtype=np.uint16, size=(20, 24)):
    return np.random.default_rng(0).integers(0, 200, (BANDS, *size)).astype(dtype)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'int32', 'float32', 'float64'])
@pytest.mark.parametrize('last', [False, True])
def test_formats_and_types(dtype, last):
    """Bands first or last; 8 bits become shares of 255, everything else keeps its units."""
    array = values(dtype)
    expected = torch.from_numpy(array.astype(np.float32)) / (255 if dtype == 'uint8' else 1)
    stored = np.ascontiguousarray(array.transpose(1, 2, 0)) if last else array
    files = [
        saved(np.save, stored), saved(np.savez, stored), saved(np.savez_compressed, image=stored, label=np.ones(3)),
        saved(tifffile.imwrite, stored, photometric='minisblack', planarconfig='contig' if last else 'separate'),
        saved(tifffile.imwrite, stored, photometric='minisblack', bigtiff=True, compression='zlib',
              planarconfig='contig' if last else 'separate')]
    for file in files:
        assert torch.equal(read_bands(file, BANDS), expected)


def test_one_band_photographs_and_pages():
    grey = values()[0]
    assert torch.equal(read_bands(saved(np.save, grey), 1)[0], torch.from_numpy(grey.astype(np.float32)))
    image = Image.fromarray(values(np.uint8)[:3].transpose(1, 2, 0))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(read_bands(saved(image.save, 'PNG'), 3), expected)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        for band in values():
            pages.write(band, photometric='minisblack')
    file.seek(0)
    assert torch.equal(read_bands(file, BANDS), torch.from_numpy(values().astype(np.float32)))


@pytest.mark.parametrize('array, channels, reason', [
    (values(), 12, r'\(13, 20, 24\).*no axis of 12 bands'),
    (values(np.complex64), BANDS, 'complex64'),
    (np.full((BANDS, 4, 4), np.nan, np.float32), BANDS, '208 of its values'),
    (values(size=(20, 60)), BANDS, 'exceed --max-pixels 1000'),
])
def test_what_is_refused(array, channels, reason):
    with pytest.raises(ValueError, match=reason):
        read_bands(saved(np.save, array), channels, max_pixels=1000)


def test_no_code_is_run_from_arrays():
    with pytest.raises(ValueError, match='allow_pickle'):
        read_bands(saved(np.save, np.array([print], dtype=object), allow_pickle=True), 1)


def write_bands(folder, count=6, offset=0.):
    """Write images whose bands have means of their own, far from zero, half TIFF and half .npy."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(int(offset))
    for i in range(count):
        coarse = rng.normal(0, 100, (BANDS, 5, 6)).repeat(8, 1).repeat(8, 2)
        array = (coarse + 5000 + offset + 300 * np.arange(BANDS)[:, None, None]).astype(np.uint16)
        if i % 2:
            np.save(folder / f'{i}.npy', array)
        else:
            tifffile.imwrite(folder / f'{i}.tif', array.transpose(1, 2, 0), photometric='minisblack')


def test_statistics_are_those_of_numpy(tmp_path):
    write_bands(tmp_path / 'images')
    options = options_of(data_dir=str(tmp_path), in_chans=BANDS)
    train = open_data(options, 'bands').train
    said = measure_statistics(options, train, 'bands')
    arrays = [read_bands(path, BANDS).numpy().astype(np.float64) for path, _ in train.reader.samples]
    pixels = np.concatenate([array.reshape(BANDS, -1) for array in arrays], axis=1)
    np.testing.assert_allclose(options.mean, pixels.mean(1), rtol=1e-5)  # six digits are kept
    np.testing.assert_allclose(options.std, pixels.std(1), rtol=1e-5)
    assert said == f'mean and standard deviation of 13 bands measured on {len(train)} images'
    assert measure_statistics(options, train, 'bands') == ''  # once
    config = dict(input_size=(BANDS, 32, 40), mean=options.mean, std=options.std, mode='bands')
    batch = next(iter(create_train_loader(train, options, config, CPU)))[0]
    assert batch.shape == (4, BANDS, 32, 40) and batch.dtype == torch.float32
    assert batch.mean().abs() < 0.5 and 0.5 < batch.std() < 1.5  # in units of --std: they are not divided by 255


def test_constant_band_and_half_of_the_statistics(tmp_path):
    (tmp_path / 'images').mkdir()
    array = values(np.float32)
    array[6] = 3
    for i in range(4):
        np.save(tmp_path / 'images' / f'{i}.npy', array)
    train = open_data(options_of(data_dir=str(tmp_path), in_chans=BANDS), 'bands').train
    with pytest.raises(UserError, match='band 7 has the same value'):
        measure_bands(train, BANDS)
    with pytest.raises(UserError, match='belong together'):
        measure_statistics(options_of(data_dir=str(tmp_path), in_chans=BANDS, mean=[0.]), train, 'bands')


def test_crops_and_flips():
    """Bands that hold coordinates tell the box and the flip; more than 8 bits survive."""
    rows, columns = np.mgrid[:60, :80].astype(np.float32)
    image = torch.from_numpy(np.stack([rows * 100, columns * 100, *[rows * 0 + band for band in range(11)]]))
    transform = create_transform(
        (BANDS, 24, 32), is_training=True, use_prefetcher=True, scale=(0.2, 0.8), color_jitter=None, vflip=0.5,
        interpolation='bilinear')
    augmentation = on_tensors(transform, 'bands')
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        box = augmentation.draw(image)
        found = augmentation.apply(image, box)
        assert found.shape == (BANDS, 24, 32)
        across, down = found[1, 12, -1] > found[1, 12, 0], found[0, -1, 16] > found[0, 0, 16]
        seen.add((bool(across), bool(down)))
        # the mean of a linear function over the crop is its value in the centre
        assert found[0].mean() == pytest.approx(100 * (box.top + (box.height - 1) / 2), abs=30)
        assert found[1].mean() == pytest.approx(100 * (box.left + (box.width - 1) / 2), abs=30)
        assert torch.allclose(found[7], torch.tensor(5.), atol=1e-4)
    assert len(seen) == 4
    centre = ResizeAndCenterCrop((24, 32), 0.5, 'bilinear')(image)
    assert centre.shape == (BANDS, 24, 32)
    assert centre[0].mean() == pytest.approx(2950, abs=60) and centre[1].mean() == pytest.approx(3950, abs=60)


@pytest.mark.parametrize('flag, value', [
    ('color_jitter', 0.4), ('aa', 'rand-m9'), ('grayscale_prob', 0.1), ('gaussian_blur_prob', 0.1), ('no_aug', True),
    ('train_crop_mode', 'rkrc'), ('train_interpolation', 'lanczos')])
def test_augmentation_of_colours_is_refused(flag, value, tmp_path):
    write_bands(tmp_path / 'images')
    options = options_of(data_dir=str(tmp_path), in_chans=BANDS, **{flag: value})
    config = dict(input_size=(BANDS, 32, 32), mean=[0.] * BANDS, std=[1.] * BANDS, mode='bands')
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')}"):
        create_train_loader(open_data(options, 'bands').train, options, config, CPU)


def test_pictures(tmp_path):
    """The 2nd and the 98th percentile of the original span the range of all views."""
    assert check_shown_bands([3, 2, 1], BANDS) == (2, 1, 0) and check_shown_bands(None, 2) == (0,)
    for shown in ([0], [14], [1, 2]):
        with pytest.raises(UserError, match='--mim-bands'):
            check_shown_bands(shown, BANDS)
    image = torch.linspace(-3, 5, 100 * 100).view(1, 1, 100, 100).repeat(1, BANDS, 1, 1)
    image[:, 2] *= 7
    image[:, 0] = image[:, 0].flip(-1)
    half = View('half', image / 2)
    save_views(tmp_path / 'x.png', [View('original', image), half], [0.] * BANDS, [1.] * BANDS, bands=(2, 1, 0))
    sheet = np.asarray(Image.open(tmp_path / 'x.png')).astype(int)
    original, halved = sheet[26:-8, 8:208], sheet[26:-8, 216:416]
    assert (original == 0).mean() == pytest.approx(0.02, abs=0.01)
    assert (original == 255).mean() == pytest.approx(0.02, abs=0.01)
    assert halved.max() < 200  # not stretched anew


def lines_of_log(folder):
    return (folder / 'train.log').read_text()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('bands')
    for split, count in (('train', 6), ('validation', 3)):
        for name, offset in (('a', 0.), ('b', 2000.)):
            write_bands(root / split / name, count, offset)
    (root / 'train' / 'a' / 'sheet.csv').touch()
    return root


def test_from_pretraining_to_validation(folder, train, tmp_path, monkeypatch, capfd):
    run = tmp_path / 'run'
    flags = (f'--data-dir {folder} --img-size 32 --in-chans {BANDS} --mim-bands 4 3 2 --output {tmp_path} '
             '--experiment run')
    train(f'{flags} --epochs 1')
    log = lines_of_log(run)
    assert 'mean and standard deviation of 13 bands measured on 12 images' in log and '1 .csv' in log
    config = json.loads((run / 'encoder' / 'config.json').read_text())['pretrained_cfg']
    assert config['input_size'][0] == len(config['mean']) == len(config['std']) == BANDS and 5000 < config['mean'][0]

    (folder / 'train' / 'b' / '0.tif').write_bytes((folder / 'train' / 'a' / '0.tif').read_bytes())
    train(f'{flags} --epochs 2 --resume auto')  # what was measured holds, although the images have changed
    assert json.loads((run / 'encoder' / 'config.json').read_text())['pretrained_cfg']['mean'] == config['mean']
    assert 'bands measured' not in lines_of_log(run)[len(log):]

    command = json.loads((run / 'summary.json').read_text())['fine_tune']
    command = command.replace('LABELLED_FOLDER', str(folder)).replace('--num-classes N', '--num-classes 2')
    flags = shlex.join(shlex.split(command)[2:])
    still = '--opt sgd --lr 1e-12 --epochs 1 --warmup-epochs 0'
    train(f'{flags} --device cpu --workers 0 --batch-size 4 --output {tmp_path} --experiment tuned '
          f'--reprob 0.3 {still}', tiny=False)
    weights = torch.load(tmp_path / 'tuned' / 'last.pth.tar', weights_only=False)['state_dict']
    encoder = load_file(run / 'encoder.safetensors')
    assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in encoder.items())

    # without statistics: measured, kept in args.yaml, and asked for by validate.py; it tells the classes apart
    train(f'{SUPERVISED} --in-chans {BANDS} --data-dir {folder} --output {tmp_path} --experiment plain --epochs 6 '
          '--lr 3e-3 --val-interval 6', tiny=False)
    text = capfd.readouterr().out
    measured = torch.load(tmp_path / 'plain' / 'last.pth.tar', weights_only=False)
    assert json.loads(text.rpartition('--result')[2])[0]['validation']['top1'] == 100
    assert 'mean:\n- ' in (tmp_path / 'plain' / 'args.yaml').read_text()

    import importlib.util
    from tiny_runs import SCRIPT
    spec = importlib.util.spec_from_file_location('validate_script', SCRIPT.parent / 'validate.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    flags = (f'--data-dir {folder} --model test_vit --num-classes 2 --img-size 32 --in-chans {BANDS} --device cpu '
             f'--workers 0 --checkpoint {tmp_path}/plain/last.pth.tar').split()
    options = vars(measured['args'])
    statistics = [word for name in ('mean', 'std') for word in (f'--{name}', *map(str, options[name]))]
    monkeypatch.setattr(sys, 'argv', ['validate.py', *flags])
    with pytest.raises(UserError, match='--mean and --std are needed for bands'):
        script.main()
    monkeypatch.setattr(sys, 'argv', ['validate.py', *flags, *statistics])
    script.main()
    assert json.loads(capfd.readouterr().out.rpartition('--result')[2])['top1'] == 100

    monkeypatch.setattr(sys, 'argv', ['validate.py', '--mim', 'simmim', '--checkpoint', str(run / 'last.pth.tar')])
    script.main()
    found = json.loads(capfd.readouterr().out.rpartition('--result')[2])
    assert found['num_images'] == 6 and found['masked_l1'] > 0


def test_fine_tuning_refuses_colours(folder, train, tmp_path):
    with pytest.raises(UserError, match='--aa changes colours'):
        train(f'{SUPERVISED} --in-chans {BANDS} --data-dir {folder} --output {tmp_path} --aa rand-m9', tiny=False)
