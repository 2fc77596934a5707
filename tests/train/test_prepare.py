"""`python -m timm.mim.prepare` writes smaller copies once."""
import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_pretrain_data import options_of
from test_tensor_transforms import photograph

from timm.mim import prepare as module
from timm.mim.pretrain.data.datasets import open_data


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'a.b').mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph((400, 300)).save(folder / 'a.b' / '0.jpg', quality=95, exif=exif)
    photograph((90, 70)).save(folder / 'a.b' / '0.webp', lossless=True)
    photograph((120, 200)).convert('RGBA').save(folder / 'c.png')
    Image.fromarray(np.arange(80 * 80, dtype=np.uint16).reshape(80, 80) * 10).save(folder / 'grey.png')
    (folder / 'broken.jpg').write_bytes(b'no image')
    (folder / 'notes.txt').touch()
    return folder


def run(*words):
    return module.main([*map(str, words), '--workers', '0'])


def test_folder(images, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(images, out, '--short-side', 64) == 0
    said = capsys.readouterr()
    assert '4 images written, 0 were there already' in said.out
    assert "1 images cannot be read and are left out: '" in said.err and '1 .txt' in said.err
    sizes = {path.relative_to(out).as_posix(): Image.open(path).size for path in out.rglob('*.jpg')}
    assert sizes == {
        'a.b/0.jpg': (85, 64), 'a.b/0.webp.jpg': (82, 64), 'c.png.jpg': (64, 107), 'grey.png.jpg': (64, 64)}
    assert Image.open(out / 'a.b' / '0.jpg').getexif()[0x0112] == 6 and Image.open(out / 'grey.png.jpg').mode == 'L'
    Image.open(images / 'a.b' / '0.jpg').resize((85, 64), Image.Resampling.BICUBIC).save(tmp_path / 'x.jpg', quality=90)
    found, expected = (np.asarray(Image.open(path)).astype(int) for path in (out / 'a.b' / '0.jpg', tmp_path / 'x.jpg'))
    assert np.abs(found - expected).mean() < 2  # decoded at half the size, as the loader does


def test_it_goes_on_where_it_stopped(images, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'out'
    encode, calls = module.resized, []

    def interrupted(path, settings):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(path, settings)
    monkeypatch.setattr(module, 'resized', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(images, out)
    assert not list(out.rglob('*.partial'))
    assert run(images, out) == 0
    assert len(calls) == len(set(calls)) + 1  # the one that was interrupted
    assert '2 images written, 2 were there already' in capsys.readouterr().out
    assert run(images, out, '--quality', 50) == 2
    assert 'was written with quality 90' in capsys.readouterr().err


def test_shards_are_read_as_a_stream(images, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(images, out, '--short-side', 32, '--shard-size', 2) == 0
    assert [len(tarfile.open(path).getnames()) for path in sorted(out.glob('*.tar'))] == [2, 1, 1]
    stream = open_data(options_of(dataset='wds/', data_dir=str(out), val_split=''), 'RGB').train
    found = {sample.key: Image.open(io.BytesIO(sample.image)).size for sample in stream}
    assert found == {'a_b/0_jpg': (43, 32), 'a_b/0_webp': (41, 32), 'c_png': (32, 53), 'grey_png': (32, 32)}


@pytest.mark.parametrize('words, said', [
    (['nowhere', 'out'], "no folder 'nowhere'"), (['{images}', '{images}/out'], 'lies in the folder'),
    (['{images}', '{images}'], 'lies in the folder'), (['{images}', 'out', '--quality', '100'], '--quality 1 to 95'),
    (['{empty}', 'out'], 'no image in'), (['{images}', '{full}'], 'not empty')])
def test_mistakes(words, said, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('empty', 'full'):
        (tmp_path / name).mkdir()
    (tmp_path / 'full' / 'x').touch()
    places = dict(images=images, empty=tmp_path / 'empty', full=tmp_path / 'full')
    assert run(*(word.format(**places) for word in words)) == 2
    assert said in capsys.readouterr().err
