"""Random damage to files of every format: one line and exit code 2 or a conversion, and nothing else happens.

1,000 seeds and not 120 with --all-models.
"""
import argparse
import json
import os
import random
import shutil
import socket

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mutations import RunsCode, damaged, damaged_bytes
from reference_tensors import facebook_ijepa, facebook_mae, microsoft_swin, microsoft_vit
from timm.mim.convert import convert
from timm.mim.convert.__main__ import main

HEADS = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))
FLAGS = ['--model-kwargs', 'num_heads=4', '--mim-kwargs', 'decoder_heads=2']
ENCODER_FLAGS = ['--model-kwargs', 'num_heads=4']
SIZES = dict(depth=1, decoder_depth=1)


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """A file or folder of each format, and the flags that convert it."""
    folder = tmp_path_factory.mktemp('sources')
    args = argparse.Namespace(model='mae_vit_base_patch16', norm_pix_loss=False, mask_ratio=0.75)
    torch.save(dict(model=facebook_mae(**SIZES), args=args, epoch=1), folder / 'mae.pth')
    torch.save(dict(model=facebook_mae(depth=1, encoder=True)), folder / 'encoder.pth')
    torch.save(facebook_ijepa(depth=1, predictor_depth=1), folder / 'ijepa.pth')
    torch.save(dict(model=microsoft_vit(depth=1)), folder / 'simmim.pth')
    torch.save(dict(model=microsoft_swin(depths=(2, 1), heads=(2, 4), size=32)), folder / 'swin.pth')
    convert(folder / 'mae.pth', folder / 'vitmae', 'huggingface-vitmae', **HEADS)
    convert(folder / 'swin.pth', folder / 'swin', 'huggingface-swin-mim')
    convert(folder / 'mae.pth', folder / 'ours.safetensors', 'mim', **HEADS)
    convert(folder / 'simmim.pth', folder / 'task.pth', 'task')
    flags = {'mae.pth': FLAGS, 'encoder.pth': ['--to', 'encoder', *ENCODER_FLAGS], 'ijepa.pth': ENCODER_FLAGS,
             'ours.safetensors': ['--to', 'task'], 'task.pth': ['--to', 'mim']}
    return [(path, flags.get(path.name, [])) for path in sorted(folder.iterdir())]


def test_what_is_damaged_is_converted(sources, tmp_path):
    for path, flags in sources:  # all of them are valid, so that damage is what is refused
        assert main([str(path), str(tmp_path / destination(flags, path.name)), *flags]) == 0


@pytest.mark.parametrize('part', range(4))
def test_damaged_files(part, sources, tmp_path, capsys, monkeypatch, request):
    monkeypatch.setattr(socket.socket, 'connect', lambda *args: pytest.fail('the network was used'))
    seeds = range(part, 1000 if request.config.getoption('--all-models', False) else 120, 4)
    converted = 0
    for seed in seeds:
        rng = random.Random(seed)
        path, flags = rng.choice(sources)
        source = tmp_path / path.name
        if not damaged_copy(path, source, rng, tmp_path):
            continue
        before = files(tmp_path)
        dest = tmp_path / destination(flags)
        if rng.random() < 0.1:
            model = rng.choice(['vit_base_patch16_224', 'swin_tiny_patch4_window7_224', 'resnet18'])
            flags = [*flags, '--model', model]
        code = main([str(source), str(dest), *flags])
        captured = capsys.readouterr()
        assert code in (0, 2), seed
        if code == 2:
            assert captured.err.startswith('error: ') and captured.err.count('\n') == 1, (seed, captured.err)
            assert files(tmp_path) == before, seed
        else:
            converted += 1
            assert files(tmp_path) - before == {dest.name}, seed
            dest.unlink()
        shutil.rmtree(source) if source.is_dir() else source.unlink()
    assert 0 < converted < len(seeds) / 2  # damage can be harmless, an added note or another float type


def destination(flags, name=''):
    return f'{name}.converted' + ('.pth' if 'task' in flags else '.safetensors')


def files(folder):
    return set(os.listdir(folder))


def damaged_copy(path, copy, rng, folder):
    """Write a damaged copy of a file or folder; False if the format has no such damage."""
    if path.is_dir():
        shutil.copytree(path, copy)
        if rng.random() < 0.5:
            config = damaged(json.loads((path / 'config.json').read_text()), rng)
            try:
                text = json.dumps(config)
            except TypeError:
                text = rng.choice(['[]', '5', 'null', '"text"', '{', '[' * 100000, '{"hidden_size": 1e999}'])
            (copy / 'config.json').write_text(text)
            return True
        path, copy = path / 'model.safetensors', copy / 'model.safetensors'
    if rng.random() < 0.25:
        copy.write_bytes(damaged_bytes(path.read_bytes(), rng))
        return True
    if path.suffix == '.safetensors':
        try:
            save_file(damaged(load_file(path), rng), copy, metadata=odd_metadata(rng))
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, SafetensorError, TypeError, ValueError):
            copy.unlink(missing_ok=True)
            if copy.parent != folder:
                shutil.rmtree(copy.parent)
            return False  # safetensors does not write it
        return True
    content = torch.load(path, weights_only=False)
    if rng.random() < 0.1:
        content['extra'] = RunsCode(folder / 'ran')
    torch.save(damaged(content, rng), copy, _use_new_zipfile_serialization=rng.random() < 0.8)
    return True


def odd_metadata(rng):
    recipe = dict(method='mae', model='vit_base_patch16_224', img_size=[32, 32], model_kwargs=dict(depth=1), options={})
    values = [json.dumps(damaged(dict(recipe, model_kwargs={**recipe['model_kwargs'], **extra}), rng), default=str)
              for extra in ({}, {'checkpoint_path': '/etc/hostname'}, {'pretrained': True}, {'depth': 10 ** 9})]
    return dict(mim=rng.choice([*values, '[]', '5', '{', '[' * 100000, '{"model": 5}', '{"model": "a", "method": []}']))
