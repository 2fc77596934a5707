"""Only what the user gave reaches a run, whatever defaults the script has."""
import argparse

import pytest

from timm.mim.pretrain import add_arguments, given_arguments
from timm.utils import ParseKwargs


@pytest.fixture
def parser():
    """A parser in the manner of timm's training script."""
    parser = argparse.ArgumentParser()
    parser.add_argument('data', nargs='?', metavar='DIR', const=None)
    parser.add_argument('--data-dir')
    parser.add_argument('--model', default='resnet50', type=str)
    parser.add_argument('-b', '--batch-size', type=int, default=128)
    parser.add_argument('--lr', type=float, default=None)
    parser.add_argument('--img-size', type=int, nargs='+')
    parser.add_argument('--amp', action='store_true', default=False)
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
    parser.add_argument('--output', default='', type=str)
    add_arguments(parser)
    return parser


def given(parser, line):
    return vars(given_arguments(parser, line.split()))


def test_defaults_of_the_script_are_not_given(parser):
    assert given(parser, '--mim simmim') == dict(mim='simmim')


def test_what_equals_a_default_is_given(parser):
    line = '--mim simmim --model resnet50 -b 128 images --amp --img-size 64 32 --model-kwargs depth=2 --mask-ratio 0.5'
    assert given(parser, line) == dict(
        mim='simmim', model='resnet50', batch_size=128, data='images', amp=True, img_size=[64, 32],
        model_kwargs=dict(depth=2), mask_ratio=0.5)


@pytest.mark.parametrize('set_by_script', [False, True])
def test_file_counts_as_given_and_the_command_line_goes_before_it(parser, tmp_path, set_by_script):
    file = tmp_path / 'config.yaml'
    config = dict(batch_size=128, lr='1e-4', amp=False, model='vit_tiny', output=None)
    file.write_text(''.join(f'{name}: {value}\n' for name, value in config.items()).replace('None', 'null'))
    if set_by_script:
        parser.set_defaults(**config)
    # amp: false says nothing
    assert given(parser, f'-c {file} --mim mae --model vit_small images') == dict(
        mim='mae', batch_size=128, lr=1e-4, model='vit_small', data='images')
    assert given(parser, f'--config={file}') == dict(batch_size=128, lr=1e-4, model='vit_tiny')


def test_program_s_own_command_line_is_the_default(parser, monkeypatch):
    monkeypatch.setattr('sys.argv', ['train.py', '--mim', 'mae'])
    assert vars(given_arguments(parser)) == dict(mim='mae')
