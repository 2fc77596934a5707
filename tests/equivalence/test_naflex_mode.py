"""Proof 2 for calls that no registered model needs: NaFlex batches with padding, VOLO's forward_train.

They read values (coordinates, a bounding box) on the host, so they cannot run on the meta device of Proof 1.
"""
import pytest

import probe
from cases_plain import FAMILIES, GEMMA4, NAFLEX
from compare import differing
from test_values import assert_equal_values

BRANCHES = {
    'learned': dict(class_token=True),
    'learned-grid-sample': dict(pos_embed_use_grid_sample=True, reg_tokens=2),
    'factorized': dict(pos_embed='factorized'),
    'factorized-grid-sample': dict(pos_embed='factorized', pos_embed_use_grid_sample=True),
    'key-mask': dict(use_key_only_attn_mask=True, class_token=True),
    'patch-drop': dict(patch_drop_rate=0.5, reg_tokens=1),
    'axial': dict(rope_type='axial', pos_embed='none'),
    'axial-patch-drop': dict(rope_type='axial', patch_drop_rate=0.5, class_token=True),
    'dinov3': dict(rope_type='dinov3', rope_rotate_half=True),
    'mixed': dict(rope_type='mixed'),
    'mixed-patch-drop': dict(rope_type='mixed', patch_drop_rate=0.5),
    'attention-mask': dict(attention_mask=True, class_token=True),
    'checkpointing': dict(rope_type='mixed', checkpointing=True),
    'variable-patch': dict(enable_patch_interpolator=True, unflattened=True),
}


@pytest.mark.parametrize('branch', BRANCHES)
def test_naflexvit(stock, branch):
    model_kwargs = {**NAFLEX, **BRANCHES[branch]}
    assert_equal_values(stock, name='builders_plain.naflex_batch', model_kwargs=model_kwargs, img_size=[32, 48])


@pytest.mark.parametrize('encoder_pool', ['', 'soft'])
def test_gemma4(stock, encoder_pool):
    # soft pooling wants both grids, that with a column less too, to be multiples of the pooling kernel
    model_kwargs = {**GEMMA4, 'encoder_pool': encoder_pool, 'pooling_kernel_size': 1}
    assert_equal_values(stock, name='builders_plain.gemma4_batch', model_kwargs=model_kwargs, img_size=[32, 48])


@pytest.mark.parametrize('mix', [False, True])
def test_volo_forward_train(stock, mix):
    # in eval mode it adds features and classes, which works where there are as many
    model_kwargs = dict(FAMILIES['volo'][1], use_mix_token=mix, num_classes=32)
    arguments = dict(name='builders_plain.volo_forward_train', model_kwargs=model_kwargs, img_size=[32, 32])
    stock.ask('values', **arguments)
    assert differing(probe.values(**arguments), stock.answer()) == []
