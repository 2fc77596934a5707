"""What a user meets first: help, misspelt flags and names, the program without a clone, the device."""
import argparse
import runpy
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from tiny_runs import SCRIPT, TINY, environment

import timm
from timm.loss import LOSS_TYPES
from timm.mim.factory import nearest_names
from timm.mim.pretrain import __main__ as program
from timm.mim.pretrain.flags.run_options import DEFAULTS, METHODS
from timm.mim.pretrain.flags import OneLineParser, UserError, parse

from timm.mim.pretrain.processes import default_device, describe_device
from timm.mim.pretrain.recipes import RECIPES

RECIPE_FILES = sorted((SCRIPT.parent / 'recipes').glob('*.yaml'))


def mistakes(call, capsys):
    """Lines on standard error of a call that ends the program with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize('arguments, said', [
    ('train.py --help', 'Masked image modeling:'),
    ('validate.py --help', 'Masked image modeling:'),
    ('train.py --mmi mae', 'train.py: error: there is no flag --mmi; did you mean --mim?\n'),
])
def test_answered_without_torch(arguments, said):
    """Importing timm takes seconds."""
    code = ('import runpy, sys\ntry:\n    runpy.run_path(sys.argv[0], run_name="__main__")\nexcept SystemExit:\n'
            '    assert not {"torch", "timm"} & sys.modules.keys()\nelse:\n    sys.exit("went on")')
    script, *flags = arguments.split()
    command = [sys.executable, '-c', f'import sys; sys.argv = {[str(SCRIPT.with_name(script)), *flags]}; '
               f'sys.path.insert(0, {str(SCRIPT.parent)!r})\n{code}']
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert said in result.stdout + result.stderr
    assert result.stderr.count('\n') <= 1


@pytest.mark.parametrize('words, said', [
    ('--mmi mae', ['p: error: there is no flag --mmi; did you mean --mim?']),
    ('--epoks=3 --zzz', ['p: error: there is no flag --epoks; did you mean --epochs?',
                         'p: error: there is no flag --zzz; --help lists all flags.']),
    ('--learning-rate 3', ['p: error: there is no flag --learning-rate; did you mean --lr?']),
    ('--lerning_rate 3', ['p: error: there is no flag --lerning_rate; did you mean --lr?']),
    ('--accum-iter 2', ['p: error: there is no flag --accum-iter; --help lists all flags.']),  # p has no such flag
    ('folder stray', ["p: error: no flag takes the argument 'stray'."]),
    ('--epochs x', ["p: error: argument --epochs: invalid int value: 'x'"]),
])
def test_unknown_flags(words, said, capsys):
    parser = OneLineParser(prog='p')
    parser.add_argument('data', nargs='?')
    parser.add_argument('--mim')
    parser.add_argument('--lr', type=float)
    parser.add_argument('--epochs', type=int)
    assert mistakes(lambda: parser.parse_args(words.split()), capsys) == said


@pytest.mark.parametrize('flags, said', [
    ('--mim mae --data-dir /nowhere --model vit_tiny --mask-ratio 2 --batch-size 0 --sched cos', [
        "--data-dir: '/nowhere' does not exist", "timm has no model 'vit_tiny'; did you mean vit_tiny_patch16_224, ",
        '--mask-ratio 2 must lie', '--batch-size 0 must', "--sched: there is no 'cos'"]),
    ('--data-dir /nowhere --model resnet500 --amp-dtype float64', [
        "timm has no model 'resnet500'; did you mean resnet50", '--amp-dtype']),
    ('--mim mae --mixup 1 --smoothing 0.1', ['--mixup has no meaning', '--smoothing has no meaning']),
    ('--mim mae --data-dir /nowhere --model swin_tiny', [  # MAE does not serve it, and says so of a whole name
        "--data-dir: '/nowhere'", "timm has no model 'swin_tiny'; did you mean swin_tiny_patch4_window7_224"]),
    ('--mim maee', ["there is no method 'maee'; did you mean mae?"]),
])
def test_mistakes_are_told_at_once_images_first(flags, said, train, capsys):
    lines = mistakes(lambda: train(flags, tiny=False), capsys)
    assert len(lines) == len(said)
    for line, text in zip(lines, said):
        assert text in line and line.count('error: ') == 1


@pytest.mark.parametrize('name, names, near', [
    ('vit_tiny', ['vit_tinier', 'vit_tiny_r', 'vit_tiny_patch16', 'vit_s'], ['vit_tiny_r', 'vit_tiny_patch16']),
    ('vit_tiny_16', ['vit_tiny_patch16_224', 'swin'], ['vit_tiny_patch16_224']),
    ('vti_tiny', ['vit_tiny', 'swin'], ['vit_tiny']),
    ('zzz', ['vit_tiny', 'swin'], []),
])
def test_nearest_names(name, names, near):
    assert nearest_names(name, names, len(near) or 3) == near


def test_lists_that_stand_twice_are_equal(script):
    """Some flags name what timm defines, which they do not import."""
    loss, = [action for action in script.parser._actions if action.dest == 'loss']
    assert loss.choices == LOSS_TYPES
    assert METHODS == tuple(RECIPES)


def test_program_has_the_flags_that_mean_something():
    names = {action.dest for action in program.create_parser()._actions}
    assert names - {'help', 'config', 'data'} == DEFAULTS.keys()


def test_clone_without_a_build_is_told_in_one_line(monkeypatch, capsys):
    """Python takes the folder of overlays for a namespace package there."""
    monkeypatch.setattr('importlib.util.find_spec', lambda name: ModuleSpec(name, None))
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(SCRIPT.parent / 'training/__init__.py'))
    assert error.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        'error: timm is not built here: run `make`, or `pip install -e .` in this clone']


def test_program_without_a_clone(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', [f'{tmp_path}/__main__.py'])
    line = f'--mim mae --data-dir {images} --output {tmp_path} --experiment run --epochs 1 {TINY}'
    program.main(line.split())
    assert (tmp_path / 'run' / 'encoder.safetensors').is_file()
    lines = mistakes(lambda: program.main(['-c', 'mae_vit_base_patch16', '--data-dir', '/nowhere']), capsys)
    assert lines[-1] == "python -m timm.mim.pretrain: error: --data-dir: '/nowhere' does not exist."
    assert '--mim METHOD' in mistakes(lambda: program.main([]), capsys)[-1]


def test_recipes_come_with_the_package():
    folder = Path(timm.__file__).parent / 'mim' / 'recipes'
    assert {f.name: f.read_bytes() for f in folder.glob('*')} == {f.name: f.read_bytes() for f in RECIPE_FILES}
    parser = program.create_parser()
    for file in RECIPE_FILES:
        assert parse(parser, ['-c', file.stem]) == parse(parser, ['--config', str(file)])
    with pytest.raises(UserError, match="'mae_vit_bas' cannot be read: No such .*mae_vit_base_patch16"):
        parse(parser, ['-c', 'mae_vit_bas'])


@pytest.mark.skipif(not hasattr(torch, 'accelerator'), reason='torch.accelerator is of PyTorch 2.6')
def test_device_is_the_accelerator_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    assert default_device() == 'cpu'
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device('xpu'))
    assert default_device() == 'xpu'


def test_device_is_told():
    assert describe_device(torch.device('cpu'), chosen=False) == 'device: cpu, because there is no accelerator'
    assert describe_device(torch.device('cpu'), chosen=True) == 'device: cpu'
    assert describe_device(torch.device('mps'), chosen=False) == 'device: mps, the accelerator of this machine'


def test_no_sample_recipe_pins_a_device():
    for file in RECIPE_FILES:
        assert 'device' not in argparse.Namespace(**parse(program.create_parser(), ['-c', str(file)])[0])
