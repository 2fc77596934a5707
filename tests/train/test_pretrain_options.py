"""What flags, recipes and defaults come to."""
from argparse import Namespace

import pytest

from timm.mim.pretrain.options import resolve_learning_rate, resolve_options


def resolve(**given):
    return resolve_options(Namespace(**{'mim': 'simmim', 'device': 'cpu', **given}))


def test_recipe_fills_what_is_not_given():
    options, from_recipe = resolve(weight_decay=0.1)
    assert options.weight_decay == 0.1 and 'weight_decay' not in from_recipe
    assert options.opt == 'adamw' and options.opt_betas == [0.9, 0.999] and options.clip_grad == 5
    assert options.scale == [0.67, 1.0] and options.ratio == [3 / 4, 4 / 3]
    assert {'opt', 'opt_betas', 'clip_grad', 'scale', 'ratio', 'lr_base', 'lr_base_size'} <= set(from_recipe)


def test_value_that_is_given_counts_even_if_it_is_none_of_the_recipe():
    options, from_recipe = resolve(clip_grad=0.0, opt='sgd')
    assert options.clip_grad == 0 and options.opt == 'sgd'
    assert not {'clip_grad', 'opt'} & set(from_recipe)


@pytest.mark.parametrize('given, batch_size, expected', [
    (dict(), 512, 1e-4),  # SimMIM's base rate is per 512 images
    (dict(), 2048, 4e-4),
    (dict(lr_base=1e-3), 512, 2e-3),  # timm's is per 256
    (dict(lr_base=1e-3, lr_base_size=1024), 512, 5e-4),
    (dict(lr_base=1e-3, lr_base_scale='sqrt'), 1024, 2e-3),
    (dict(lr=3e-4), 2048, 3e-4),
    (dict(lr=3e-4, lr_base=1), 2048, 3e-4),
])
def test_learning_rate(given, batch_size, expected):
    options, _ = resolve(**given)
    assert resolve_learning_rate(options, batch_size) == pytest.approx(expected)


@pytest.mark.parametrize('given, size', [
    (dict(img_size=96), (96, 96)),
    (dict(img_size=[96]), (96, 96)),
    (dict(img_size=[96, 64]), (96, 64)),
    (dict(input_size=[1, 96, 64]), (96, 64)),
    (dict(), None),
])
def test_image_size(given, size):
    options, _ = resolve(**given)
    assert options.img_size == size
    assert options.in_chans == given.get('input_size', [3])[0]


def test_command_line_goes_before_the_file(script, tmp_path):
    (tmp_path / 'c.yaml').write_text(
        'mim: simmim\nbatch-size: 8\nlr: 3e-4\namp: true\nmodel_ema: false\nimg_size: [64, 32]\n'
        'model_kwargs: {depth: 2, qkv_bias: false}\nresume:\n')
    args, _ = script._parse_args(['-c', str(tmp_path / 'c.yaml'), '--batch-size', '4'])
    assert vars(args) == dict(
        mim='simmim', batch_size=4, lr=3e-4, amp=True, img_size=[64, 32], model_kwargs=dict(depth=2, qkv_bias=False))


@pytest.mark.parametrize('text', ['batch_size: many', 'input_size: 224', 'img_size: [64, x]'])
def test_values_of_the_file_are_checked(text, script, tmp_path):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(SystemExit) as stopped:
        script._parse_args(['-c', str(tmp_path / 'c.yaml')])
    assert stopped.value.code == 2
