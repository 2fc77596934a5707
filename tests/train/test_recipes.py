"""The recipes are the papers': every file resolves, and gives the values of its reference.

Values from the configurations and command lines of facebookresearch/mae (PRETRAIN.md, main_pretrain.py),
facebookresearch/capi (default_pretrain_config.yaml), facebookresearch/pixio and TonyLianLong/CrossMAE (facts on their
scripts, no code),
microsoft/SimMIM (configs, config.py), facebookresearch/ijepa (configs/in1k_vith14_ep300.yaml), keyu-tian/SparK and
facebookresearch/ConvNeXt-V2 (TRAINING.md).
"""
import re
from pathlib import Path

import pytest
import torch

from timm.mim.pretrain.task import create_method
from timm.mim.pretrain.options import resolve_learning_rate, resolve_options

RECIPES = {path.stem: path for path in (Path(__file__).parents[2] / 'recipes').glob('*.yaml')}
IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

MAE = dict(
    IMAGENET, mim='mae', img_size=(224, 224), mask_ratio=0.75, opt='adamw', opt_betas=[0.9, 0.95], weight_decay=0.05,
    clip_grad=0, sched='cosine', warmup_epochs=40, warmup_lr=0, min_lr=0, scale=[0.2, 1.0], ratio=[3 / 4, 4 / 3],
    hflip=0.5, train_interpolation='bicubic', color_jitter=0)
SIMMIM = dict(
    IMAGENET, mim='simmim', mask_ratio=0.6, mask_unit=32, opt='adamw', opt_betas=[0.9, 0.999], weight_decay=0.05,
    clip_grad=5, warmup_epochs=10, scale=[0.67, 1.0], ratio=[3 / 4, 4 / 3], hflip=0.5,
    train_interpolation='bilinear', color_jitter=0)
IJEPA = dict(
    IMAGENET, mim='ijepa', img_size=(224, 224), opt='adamw', opt_betas=[0.9, 0.999], weight_decay=0.04,
    weight_decay_end=0.4, clip_grad=0, sched='cosine', warmup_epochs=40, warmup_lr=2e-4, min_lr=1e-6, scale=[0.3, 1.0],
    ratio=[3 / 4, 4 / 3], hflip=0, train_interpolation='bilinear', color_jitter=0)
SPARK = dict(
    IMAGENET, mim='spark', img_size=(224, 224), mask_ratio=0.6, mask_unit=32, opt='lamb', opt_eps=1e-6, amp=False,
    opt_kwargs=dict(max_grad_norm=5.0), weight_decay=0.04, weight_decay_end=0.2, clip_grad=0, sched='cosine',
    warmup_epochs=40, warmup_lr=pytest.approx(3.2e-3 * 0.005), min_lr=pytest.approx(3.2e-3 * 0.001),
    scale=[0.67, 1.0], ratio=[3 / 4, 4 / 3], hflip=0.5, train_interpolation='bicubic', color_jitter=0)
FCMAE = dict(MAE, mim='fcmae', mask_ratio=0.6, mask_unit=32, drop_path=0.0, amp=False)

DATA2VEC = dict(
    IMAGENET, mim='data2vec', img_size=(224, 224), mask_ratio=0.8, opt='adamw', opt_betas=[0.9, 0.95],
    weight_decay=0.05, clip_grad=4, sched='cosine', warmup_epochs=10, warmup_lr=0, min_lr=0, scale=[0.2, 1.0],
    ratio=[3 / 4, 4 / 3], hflip=0.5, train_interpolation='bicubic', color_jitter=0)

# global batch, epochs in all, learning rate at that batch, parameters of the encoder in millions, options
PAPERS = {
    'mae_vit_base_patch16': (4096, 800, 2.4e-3, 86, MAE),
    'mae_vit_large_patch16': (4096, 800, 2.4e-3, 303, MAE),
    'crossmae_vit_base_patch16': (4096, 800, pytest.approx(2.4e-3 / 3), 86, MAE),
    'pixio_vit_huge_patch16': (8192, 400, 8e-4, 631, dict(
        MAE, img_size=(256, 256), mask_unit=64, drop_path=0.4, hflip=0)),
    'simmim_vit_base_patch16': (2048, 800, 4e-4, 86, dict(
        SIMMIM, img_size=(224, 224), sched='multistep', decay_milestones=[700], decay_rate=0.1, drop_path=0.1,
        warmup_lr=pytest.approx(4 * 5e-7))),
    'simmim_swin_base_patch4_window6_192': (2048, 100, 8e-4, 87, dict(
        SIMMIM, img_size=(192, 192), sched='cosine', drop_path=0.0, warmup_lr=pytest.approx(4 * 1e-6),
        min_lr=pytest.approx(4 * 1e-5))),
    'ijepa_vit_huge_patch14': (2048, 300, 1e-3, 631, IJEPA),
    'data2vec_vit_base_patch16': (256, 75, 1e-3, 86, DATA2VEC),
    'capi_vit_large_patch14': (16384, 6410, 1e-3, 303, dict(
        IMAGENET, mim='capi', img_size=(224, 224), mask_ratio=0.65, drop_path=0.2, opt='adamw', opt_betas=[0.9, 0.95],
        weight_decay=0.1, clip_grad=0, sched='cosine', warmup_lr=0, min_lr=9.5e-5, scale=[0.6, 1.0],
        ratio=[3 / 4, 4 / 3], hflip=0.5, train_interpolation='bicubic', color_jitter=0)),
    'spark_resnet50': (4096, 1600, 3.2e-3, 24, dict(SPARK, drop_path=0.05, opt_betas=[0.9, 0.95])),
    'spark_convnext_base': (4096, 1600, 3.2e-3, 88, dict(SPARK, drop_path=0.3, opt_betas=[0.9, 0.999])),
    'fcmae_convnextv2_base': (4096, 1600, 2.4e-3, 88, FCMAE),
}
# attributes of the method
METHODS = {
    'mae': dict(norm_pix=True, num_visible=49),
    'simmim': dict(mask_unit=(32, 32)),
    'ijepa': dict(momentum=[0.996, 1.0]),
    'data2vec': dict(num_visible=39, num_squares=5, clone_batch=16),
    'capi': dict(
        num_visible=90, num_predicted=8, num_prefix_tokens=16, num_clusters=16384, teacher_temperature=0.06,
        student_temperature=0.12, sinkhorn_iterations=3, momentum=[0.999, 0.9999], momentum_warmup=0.1),
    'spark': dict(norm_pix=True, num_visible=20, mask_unit=(32, 32)),
    'fcmae': dict(norm_pix=True, num_visible=19, mask_unit=(32, 32)),
}


def resolved(script, name):
    probed = ['--mim-probe-dir', 'samples/digits'] if name.startswith('continue_') else []
    args, _ = script._parse_args(['-c', str(RECIPES[name]), '--device', 'cpu', *probed])
    return resolve_options(args)[0]


@pytest.mark.parametrize('name', RECIPES)
def test_resolves(script, name):
    header = RECIPES[name].read_text().split('\nmim:')[0]
    assert all(line.startswith('#') for line in header.splitlines())
    assert f'-m timm.mim.pretrain -c {name}' in header
    resolved(script, name)


def test_all_papers_are_here():
    others = [name for name in RECIPES if '_sample_' in name or name.startswith('continue_')]
    assert set(PAPERS) == RECIPES.keys() - set(others)


@pytest.mark.parametrize('name', PAPERS)
def test_values_are_the_papers(script, name):
    batch, epochs, learning_rate, _, expected = PAPERS[name]
    options = resolved(script, name)
    assert {key: getattr(options, key) for key in expected} == expected
    assert options.amp == expected.get('amp', True)
    assert options.epochs + options.warmup_prefix * options.warmup_epochs == epochs
    assert resolve_learning_rate(options, batch) == pytest.approx(learning_rate)
    header = RECIPES[name].read_text()
    processes = int(re.search(r'--nproc_per_node (\d+)', header).group(1))
    assert processes * options.batch_size * options.grad_accum_steps == batch
    assert f'= {batch}' in header and 'https://arxiv.org/abs/' in header and re.search(r'Published: \d\d\.\d %', header)


@pytest.mark.parametrize('name', PAPERS)
def test_builds_the_papers_model(script, name):
    millions = PAPERS[name][3]
    with torch.device('meta'):
        method, _ = create_method(resolved(script, name))
    assert sum(p.numel() for p in method.backbone.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    expected = METHODS[resolved(script, name).mim]
    if name == 'pixio_vit_huge_patch16':  # 4 of 16 units of 4 x 4 patches, and 8 class tokens with positions
        expected = dict(norm_pix=True, num_visible=64, mask_unit=(64, 64), num_prefix_tokens=8)
        assert len(method.decoder.blocks) == 32 and method.decoder.pos_embed.requires_grad
        assert method.decoder.pos_embed.shape == (1, 264, 512) and method.backbone.pos_embed.shape == (1, 264, 1280)
    if name.startswith('data2vec'):
        assert method.layer_average.layers == list(range(2, 12))
    if name == 'crossmae_vit_base_patch16':
        assert method.num_predicted == 49 and len(method.decoder.blocks) == 12
        assert method.decoder.mix.weight.shape == (12, 12)
    assert {key: getattr(method, key) for key in expected} == expected
    if name == 'ijepa_vit_huge_patch14':
        assert len(method.predictor.blocks) == 12 and method.predictor_embed.out_features == 384
        assert method.backbone.num_prefix_tokens == 0
    if name.startswith('mae'):
        assert len(method.decoder.blocks) == 8 and method.decoder_embed.out_features == 512
        assert method.decoder.blocks[0].attn.num_heads == 16
    if name == 'simmim_vit_base_patch16':
        model = method.backbone
        assert model.pos_embed is None and model.rel_pos_bias is not None and model.blocks[0].gamma_1 is not None
    if name.startswith('simmim_swin'):
        assert {tuple(block.window_size) for stage in method.backbone.layers for block in stage.blocks} == {(6, 6)}
