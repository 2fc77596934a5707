"""Files of every format are read, or named; JPEG files are decoded no larger than a crop needs."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_pretrain_data import all_names, options_of
from test_tensor_transforms import drawn, encode, pair, photograph

from timm.data import create_transform
from timm.mim.pretrain.data import decoding, formats
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.decoding import ToMode, decode, open_image, open_jpeg, scale_for, to_tensor
from timm.mim.pretrain.data.reading import ImageReader
from timm.mim.pretrain.errors import UserError

READ = ('png', 'jpg', 'jpeg', 'webp', 'tif', 'tiff', 'bmp', 'gif', 'avif', 'jp2')


def test_every_format_is_read_and_the_others_are_counted(tmp_path):
    """WebP files were skipped without a word."""
    for i, suffix in enumerate(READ):
        photograph((40, 30)).save(tmp_path / f'{i}.{suffix.upper() if i % 2 else suffix}')
    for name in ('a.heic', 'b.heic', 'c.npy', 'notes.txt', 'README', '.hidden'):
        (tmp_path / name).touch()
    data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
    found = all_names(data.train) | all_names(data.held_out)
    assert {name.rpartition('.')[2].lower() for name in found} == set(READ)
    assert 'files that are not read, by suffix: 2 .heic, 1 ' in data.description
    for said in ('1 .npy', '1 .txt', '1 without suffix', 'pip install pillow-heif', '--input-img-mode bands'):
        assert said in data.description
    for i in range(len(data.train)):
        file = data.train.reader[i][0]
        assert decode(open_image(file), 'RGB').image.shape == (3, 30, 40), data.train.filename(i)


def test_with_heif(tmp_path, monkeypatch):
    """Whoever registers HEIF with Pillow, as pillow-heif does, has its files listed."""
    monkeypatch.setitem(Image.EXTENSION, '.heic', 'PNG')  # stands for the package, which is large
    formats.readable_suffixes.cache_clear()
    try:
        photograph().save(tmp_path / '0.heic', 'PNG')
        photograph().save(tmp_path / '1.png')
        data = open_data(options_of(data_dir=str(tmp_path)), 'RGB')
        assert len(data.train) + len(data.held_out) == 2 and 'not read' not in data.description
    finally:
        formats.readable_suffixes.cache_clear()


def test_tar_files_too(tmp_path):
    import tarfile
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        for i, suffix in enumerate(('webp', 'png', 'bmp')):
            photograph((40, 30)).save(tmp_path / f'{i}.{suffix}')
            archive.add(tmp_path / f'{i}.{suffix}', f'{i}.{suffix}')
    data = open_data(options_of(data_dir=str(tmp_path / 'x.tar')), 'RGB')
    assert len(data.train) + len(data.held_out) == 3


def test_pixels_of_32_bits_are_refused():
    """PIL clips them to 0 and 255, so that values between 0 and 1 become black."""
    for values in (np.random.rand(4, 4).astype(np.float32), np.arange(16, dtype=np.int32).reshape(4, 4) * 10 ** 6):
        with pytest.raises(ValueError, match='--input-img-mode bands'):
            ToMode('L')(Image.fromarray(values))


def test_colours_of_16_bits():
    """As Pillow reads them from PNG files, and as ours reads grey levels: the upper 8 bits."""
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    file = io.BytesIO(encode(Image.fromarray(levels), 'PNG'))
    assert torch.equal(decode(open_image(file), 'L').image[0], torch.from_numpy((levels // 256).astype(np.uint8)))


@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_exif_rotation(format):
    image, exif = photograph((60, 40)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    data = encode(image, format, exif=exif)
    as_stored = decode(open_image(io.BytesIO(data)), 'RGB').image
    turned = decode(open_image(io.BytesIO(data), exif_rotation=True), 'RGB').image
    assert torch.equal(turned, torch.rot90(as_stored, -1, (1, 2)))
    transform = create_transform(32, is_training=True, use_prefetcher=True, scale=(1, 1), hflip=0, color_jitter=None)
    transform.transforms[0].ratio = (0.1, 10)
    for rotation, expected in ((False, as_stored), (True, turned)):
        shapes = {ImageReader(transform, 'RGB', exif_rotation=rotation).read(data)[0].shape for _ in range(3)}
        assert shapes == {expected.shape}


def test_full_decode_is_that_of_pillow():
    for options in (dict(quality=90), dict(quality=60, progressive=True), dict(subsampling=0)):
        data = encode(photograph((101, 77)), **options)
        found = decode(open_image(io.BytesIO(data)), 'RGB').image
        assert torch.equal(found, to_tensor(Image.open(io.BytesIO(data))))
        jpeg = open_jpeg(data)
        assert (jpeg.width, jpeg.height) == (101, 77) and torch.equal(decode(jpeg, 'RGB').image, found)
    for other in (encode(photograph(), 'PNG'), encode(photograph().convert('L')), encode(photograph().convert('CMYK'))):
        assert open_jpeg(other) is None  # Pillow opens these


def test_scale_is_the_largest_that_keeps_the_crop_as_large_as_its_result():
    assert [scale_for((side, 700), (224, 224)) for side in (223, 447, 448, 700)] == [1, 1, 2, 2]
    assert scale_for((1800, 900), (224, 112)) == 8 and scale_for((900, 1800), (224, 224)) == 4


@pytest.mark.parametrize('without', [False, True])
def test_difference_of_a_scaled_decode(without, monkeypatch):
    """Bounded as the page says, for 1/2, 1/4 and 1/8; a shift by half a pixel of the result would exceed the bound."""
    if without:
        monkeypatch.setattr(decoding, 'simplejpeg', None)
    shapes = []
    for side in (500, 1000, 2000):
        image = photograph((side * 4 // 3, side))
        data = encode(image, quality=90)
        by_pil, by_tensor = pair(size=(224, 224) if side < 2000 else (112, 112), scale=(0.8, 1.0))
        for seed in range(3):
            expected, found = drawn(by_pil, Image.open(io.BytesIO(data)), seed), drawn(by_tensor, data, seed)
            difference = (found - expected).abs()
            shapes.append(found.shape)
            assert difference.mean() < 2 and difference.max() < 40, (side, seed, difference.mean(), difference.max())
    assert len(shapes) == 9


def test_unknown_mode():
    from timm.mim.pretrain.data.datasets import image_mode
    with pytest.raises(UserError, match='L, RGB, RGBA or bands'):
        image_mode(3, 'RGBX9')
    assert image_mode(13) == image_mode(3, 'bands') == 'bands'
