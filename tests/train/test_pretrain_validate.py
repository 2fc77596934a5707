"""validate.py --mim tells of a checkpoint what the run told of it."""
import csv
import importlib.util
import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import SCRIPT, write_images

from timm.mim import create_mim
from timm.mim.masking import keyed_noise


@pytest.fixture(scope='module')
def validate():
    """Runs the validation script in this process."""
    spec = importlib.util.spec_from_file_location('validate_script', SCRIPT.with_name('validate.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(flags: str) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('sys.argv', ['validate.py', *shlex.split(f'--workers 0 {flags}')])
            try:
                module.main()
            finally:
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
    return run


def results_of(output: str):
    return json.loads(output.split('--result\n')[1])


def last_row(run: Path):
    with open(run / 'summary.csv') as f:
        return list(csv.DictReader(f))[-1]


def test_same_numbers_as_in_training(validate, finished_run, tmp_path, capsys):
    validate(f'--mim simmim --checkpoint {finished_run}/last.pth.tar --mim-pictures {tmp_path}/views.png '
             f'--results-file {tmp_path}/results.json')
    results = results_of(capsys.readouterr().out)
    row = last_row(finished_run)
    for name in ('masked_l1', 'mean_of_visible', 'diffusion_fill'):
        assert results[name] == float(row[f'eval_{name}'])
    assert results['epoch'] == 5 and results['method'] == 'simmim' and results['model'] == 'test_vit'
    assert results['num_images'] == 1 and results['images'] == 'held out by the run'
    assert json.loads((tmp_path / 'results.json').read_text()) == results
    pixels = [np.asarray(Image.open(path).crop((0, 40, 816, 252)))  # without the caption
              for path in (tmp_path / 'views.png', finished_run / 'reconstructions' / 'epoch-0005.png')]
    assert np.array_equal(*pixels)


def test_other_images_and_masks(validate, finished_run, tmp_path, capsys):
    """The mean over a folder, computed here by hand."""
    write_images(tmp_path / 'images', 40, size=(64, 64), seed=5)
    validate(f'--mim simmim --checkpoint {finished_run}/last.pth.tar --data-dir {tmp_path}/images --num-samples 10 '
             f'--mask-seed 7 --batch-size 3 --crop-pct 1 --results-file {tmp_path}/results.csv --results-format csv')
    results = results_of(capsys.readouterr().out)
    assert results['num_images'] == 10 and results['masks_per_image'] == 4 and results['mask_seed'] == 7

    checkpoint = torch.load(finished_run / 'last.pth.tar', weights_only=False)
    method = create_mim('simmim', 'test_vit', img_size=64, mask_unit=16).eval()
    method.backbone.load_state_dict(checkpoint['state_dict'])
    method.load_state_dict(checkpoint['task_state']['method'], strict=False)
    losses = []
    for number in range(10):  # every fourth image
        pixels = np.asarray(Image.open(tmp_path / 'images' / f'{4 * number:02d}.png')).transpose(2, 0, 1)
        image = (torch.tensor(pixels) / 255 - 0.5)[None] / 0.5
        numbers = torch.arange(4 * number, 4 * number + 4)
        with torch.no_grad():
            losses.append(method(image.expand(4, -1, -1, -1), noise=keyed_noise(7, 0, numbers, 16)).loss.item())
    assert results['masked_l1'] == pytest.approx(np.mean(losses), abs=1e-5)
    with open(tmp_path / 'results.csv') as f:
        assert float(next(csv.DictReader(f))['masked_l1']) == results['masked_l1']


def test_images_that_have_changed(validate, finished_run, images, tmp_path, capsys, caplog):
    """They are not those that the run held out, and are not called so."""
    shutil.copytree(images, tmp_path / 'images')
    checkpoint = torch.load(finished_run / 'last.pth.tar', weights_only=False)
    checkpoint['args'].data_dir = str(tmp_path / 'images')
    torch.save(checkpoint, tmp_path / 'x.pth.tar')
    with caplog.at_level(logging.WARNING):
        validate(f'--mim simmim --checkpoint {tmp_path}/x.pth.tar')
        assert results_of(capsys.readouterr().out)['images'] == 'held out by the run' and caplog.text == ''
        write_images(tmp_path / 'images' / 'more', 30, seed=9)
        validate(f'--mim simmim --checkpoint {tmp_path}/x.pth.tar')
    assert results_of(capsys.readouterr().out)['images'] == 'held out now, of images that have changed since the run'
    assert '44 images to train on instead of 15' in caplog.text
    caplog.clear()
    validate(f'--mim simmim --checkpoint {tmp_path}/x.pth.tar --data-dir {tmp_path}/images/../images --num-samples 2')
    assert 'holds the images that the run was trained on' in caplog.text
    caplog.clear()
    validate(f'--mim simmim --checkpoint {tmp_path}/x.pth.tar --data-dir {tmp_path}/images/more --num-samples 2')
    assert 'WARNING' not in caplog.text


@pytest.mark.parametrize('method, model, options', [
    ('ijepa', 'test_vit', 'predictor_depth=1 predictor_dim=48 num_targets=2'),
    ('mae', 'test_vit', 'decoder_depth=1 decoder_dim=32 decoder_heads=2'),
    ('data2vec', 'test_vit', 'mask_ratio=0.5 clone_batch=2 decoder_layers=1'),
    ('spark', 'test_efficientnet', 'decoder_dim=32'),
    ('fcmae', 'test_convnext2', 'decoder_dim=32'),
])
def test_methods_and_moving_average(method, model, options, train, validate, images, tmp_path, capsys):
    write_images(tmp_path / 'labelled' / 'a', 6, seed=1)
    write_images(tmp_path / 'labelled' / 'b', 6, seed=2)
    train(f'--mim {method} --device cpu --model {model} --img-size 64 --workers 0 --batch-size 4 --lr 1e-2 --epochs 2 '
          f'--mim-kwargs {options} --data-dir {images} --output {tmp_path} --experiment run --model-ema '
          f'--model-ema-decay 0.5 --mim-probe-dir {tmp_path}/labelled', tiny=False)
    capsys.readouterr()
    validate(f'--mim {method} --checkpoint {tmp_path}/run/last.pth.tar --mim-probe-dir {tmp_path}/labelled --use-ema')
    results = results_of(capsys.readouterr().out)
    row = last_row(tmp_path / 'run')
    measured = {name.removeprefix('eval_'): float(v) for name, v in row.items() if name.startswith('eval_')}
    assert len(measured) >= 4
    assert {name: results[name] for name in measured} == measured
    assert results['ema'] is True


CASES = [
    ('', '--mim needs --checkpoint'),
    ('--checkpoint {folder}/nowhere', 'there is no file'),
    ('--checkpoint {folder}/args.yaml', '--checkpoint: .* is not a complete checkpoint'),
    ('--checkpoint {folder}/last.pth.tar --use-ema', 'has no moving average'),
    ('--checkpoint {folder}/last.pth.tar --mim mae', 'was trained with simmim'),
    ('--checkpoint {folder}/last.pth.tar --real-labels x', '--real-labels has no meaning with --mim'),
    ('--checkpoint {folder}/last.pth.tar --data-dir {folder}/nowhere', 'does not exist'),
    ('--checkpoint {folder}/last.pth.tar --split val', '--split needs --data-dir or --dataset'),
    ('--checkpoint {folder}/last.pth.tar --mim-pictures {folder}/x.txt', 'needs the ending of an image format'),
    ('--checkpoint {folder}/last.pth.tar --mim-probe knn', '--mim-probe is for --mim-probe-dir'),
    ('--checkpoint {folder}/other.pth.tar', 'is not from a pre-training run'),
]


@pytest.mark.parametrize('flags, message', CASES, ids=[flags for flags, _ in CASES])
def test_mistakes(flags, message, validate, finished_run, tmp_path, capsys):
    for name in ('last.pth.tar', 'args.yaml'):
        (tmp_path / name).symlink_to(finished_run / name)
    torch.save(dict(state_dict={}), tmp_path / 'other.pth.tar')
    with pytest.raises(SystemExit) as stopped:
        validate(f'--mim simmim {flags.format(folder=tmp_path)}')
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert len(error) == 1 and error[0].startswith('validate.py: error: ')
    assert re.search(message, error[0])
