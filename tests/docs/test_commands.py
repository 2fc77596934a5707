"""Every command in the documentation is one that the scripts take, and every method and model in it can be built."""
import importlib.util
import re
from pathlib import Path

import pytest
import torch

import timm
from pages import PAGES, ROOT, blocks, commands
from timm.mim import factory, target_factory
from timm.mim.convert import FORMATS
from timm.mim.convert.__main__ import _parser as convert_parser
from timm.mim.pretrain.build_method import create_method
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.options import resolve_options
from timm.mim.user_module import import_user_module

COMMANDS = [
    pytest.param(words, id=f'{block.place}-{number}')
    for page in PAGES for block in blocks(page, 'bash', 'sh', 'shell', 'console')
    for number, words in enumerate(commands(block))]


@pytest.fixture(scope='module')
def scripts():
    def load(name):
        spec = importlib.util.spec_from_file_location(f'documented_{name}', ROOT / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return {name: load(name) for name in ('train', 'validate')}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Teachers come without their weights, and methods that a command registers are gone after it."""
    def create_model(*args, pretrained=False, **kwargs):
        return timm.create_model(*args, **kwargs)
    monkeypatch.setattr(target_factory, 'create_model', create_model)
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))
    monkeypatch.chdir(ROOT)


def check_train(scripts, words):
    args, _ = scripts['train']._parse_args([*words, '--device', 'cpu'])
    if getattr(args, 'mim', None) is None:
        assert args.pretrained_path or args.data_dir, 'nothing to train on'
        with torch.device('meta'):
            timm.create_model(args.model, num_classes=args.num_classes or 1000, **args.model_kwargs)
        return
    if getattr(args, 'mim_module', None):
        import_user_module(args.mim_module)
    if getattr(args, 'fsdp', False):
        args.fsdp = False  # what it asks for is a matter of the machine
    options, _ = resolve_options(args)
    options.pretrained, options.pretrained_path, options.initial_checkpoint = False, None, ''  # files of the reader's
    with torch.device('meta'):
        create_method(options)


def check_torchrun(scripts, words):
    from torch.distributed.run import get_args_parser
    args = get_args_parser().parse_args(words)
    assert args.training_script == 'train.py'
    check_train(scripts, args.training_script_args)


def check_validate(scripts, words):
    scripts['validate'].parser.parse_args(words)


def check_convert(scripts, words):
    args = convert_parser().parse_args(words)
    assert args.to in (None, *FORMATS)
    assert args.model is None or timm.is_model(args.model.split('.')[0])


def check_make(scripts, words):
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    for word in words:
        assert word in targets or word.startswith('ARGS='), f'make knows no {word}'


def check_patchset(scripts, words):
    from patchset.__main__ import create_parser
    create_parser().parse_args(words)


def check_install(scripts, words):
    assert words[0] == 'install'
    text = (ROOT / 'pyproject.toml').read_text()
    for extra in re.findall(r'\.\[([\w,]+)\]', ' '.join(words)):
        for name in extra.split(','):
            assert re.search(rf'^{name} = \[', text, re.MULTILINE), f'there is no extra {name}'


def check_tool(scripts, words):
    pass  # of another project


CHECKS = {
    'python train.py': check_train,
    'torchrun': check_torchrun,
    'python validate.py': check_validate,
    'python -m timm.mim.convert': check_convert,
    'python -m patchset': check_patchset,
    'make': check_make,
    'pip': check_install,
    'tensorboard': check_tool,
}


@pytest.mark.parametrize('words', COMMANDS)
def test_command(scripts, words, capsys):
    for start, check in CHECKS.items():
        first = start.split()
        if words[:len(first)] == first:
            return check(scripts, words[len(first):])
    if words[0] == 'python' and Path(words[1]).is_file():
        return None
    pytest.fail(f'no check of {" ".join(words)}')


def test_mistakes_are_found(scripts, capsys):
    for words in (
            '--mim simmim --maskratio 0.5', '--mim mae --model resnet50', '--mim mae --mim-kwargs depth=2',
            '--mim simmim --mixup 0.8', '--model vit_small', '--mim mea', '-c recipes/nothing.yaml'):
        with pytest.raises((SystemExit, RuntimeError, UserError)):
            check_train(scripts, [*words.split(), '--data-dir', 'IMAGES'])
    with pytest.raises(AssertionError):
        check_make(scripts, ['pretraining'])
    with pytest.raises(AssertionError):
        check_convert(scripts, ['a.pth', 'b.safetensors', '--to', 'encoders'])
