"""Conversion of checkpoints of microsoft/SimMIM."""
import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from conversion import assert_equal, load_method, there_and_back
from hugging_face import relative_difference
from reference_tensors import microsoft_swin, microsoft_vit, shapes_only
from timm.mim.convert import FORMATS, ConversionError, Hints, convert
from timm.mim.convert.files import Source
from timm.models import beit, swin_transformer

FORWARD = 1e-5  # float32, the same sums in another order


def encoder_of(tensors):
    return {name[len('encoder.'):]: tensor for name, tensor in tensors.items()
            if name.startswith('encoder.') and name != 'encoder.mask_token'}


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(shared=False, positions=True),
    dict(layer_scale=False, grid=2, patch=16),
], ids=str)
def test_vision_transformer_there_and_back(kwargs, tmp_path):
    tensors = microsoft_vit(**kwargs)
    conversion, back = there_and_back(tensors, tmp_path, 'microsoft-simmim')
    assert_equal(back['model'], tensors)
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    shared = kwargs.get('shared', True)
    model = beit.Beit(
        img_size=32, patch_size=kwargs.get('patch', 8), embed_dim=48, depth=2, num_heads=4, num_classes=0,
        global_pool='token', use_abs_pos_emb=kwargs.get('positions', False), use_shared_rel_pos_bias=shared,
        use_rel_pos_bias=not shared, qkv_bias=True, init_values=0.1 if kwargs.get('layer_scale', True) else None)
    model.load_state_dict(beit.checkpoint_filter_fn(dict(model=encoder_of(tensors)), model))
    assert_equal(method.backbone.state_dict(), model.state_dict())
    assert torch.equal(method.mask_token, tensors['encoder.mask_token'])
    assert torch.equal(method.decoder.proj.weight, tensors['decoder.0.weight'])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(method.backbone.forward_features(images), model.eval().forward_features(images))


@pytest.mark.parametrize('window', [8, 16])
def test_swin_there_and_back(window, tmp_path):
    tensors = microsoft_swin(window=window)  # maps of 16, 8 and 4
    assert any('attn_mask' in name for name in tensors) == (window < 16)
    kwargs = {} if window < 16 else dict(img_size=(64, 64))
    if kwargs:
        with pytest.raises(ConversionError, match='tensors of a Swin model do not determine the image size'):
            there_and_back(tensors, tmp_path, 'microsoft-simmim')
    conversion, back = there_and_back(tensors, tmp_path, 'microsoft-simmim', **kwargs)
    assert_equal(back['model'], tensors)
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    assert method.img_size == (64, 64)
    model = swin_transformer.SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2, 1), num_heads=(2, 4, 4), window_size=window, num_classes=0)
    model.load_state_dict(swin_transformer.checkpoint_filter_fn(dict(model=encoder_of(tensors)), model))
    assert_equal(method.backbone.state_dict(), model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(method.backbone.forward_features(images), model.eval().forward_features(images))


def test_swin_by_way_of_hugging_face(tmp_path):
    transformers = pytest.importorskip('transformers')
    tensors = microsoft_swin()
    torch.save(dict(model=tensors), tmp_path / 'a.pth')
    recipe = convert(tmp_path / 'a.pth', tmp_path / 'theirs', to='huggingface-swin-mim').recipe
    converted = load_file(tmp_path / 'theirs' / 'model.safetensors')
    # src/transformers/models/swin/convert_swin_simmim_to_pytorch.py of huggingface/transformers, release 4
    for name, their_name in {
        'encoder.mask_token': 'swin.embeddings.mask_token',
        'encoder.patch_embed.norm.weight': 'swin.embeddings.norm.weight',
        'encoder.layers.0.downsample.reduction.weight': 'swin.encoder.layers.0.downsample.reduction.weight',
        'encoder.layers.1.blocks.0.mlp.fc2.bias': 'swin.encoder.layers.1.blocks.0.output.dense.bias',
        'encoder.norm.bias': 'swin.layernorm.bias',
        'decoder.0.weight': 'decoder.0.weight',
    }.items():
        assert torch.equal(converted[their_name], tensors[name]), name

    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    ours = load_method(tmp_path / 'b.safetensors', recipe)
    theirs = transformers.SwinForMaskedImageModeling.from_pretrained(tmp_path / 'theirs').eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = ours(images)
        reference = theirs(images, bool_masked_pos=output.mask.flatten(1))
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD
    assert relative_difference(output.prediction, reference.reconstruction) < FORWARD


def test_settings_in_a_class_that_is_not_installed(tmp_path, monkeypatch):
    # main_simmim.py saves its configuration, a tree of yacs.config.CfgNode, next to the model
    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module = types.ModuleType('yacs.config')
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    config = CfgNode(MODEL=CfgNode(TYPE='vit'))
    vars(config)['__immutable__'] = True
    tensors = microsoft_vit()
    torch.save(dict(model=tensors, config=config, epoch=1, max_accuracy=0.), tmp_path / 'a.pth')
    monkeypatch.delitem(sys.modules, 'yacs.config')
    convert(tmp_path / 'a.pth', tmp_path / 'b.pth', to='microsoft-simmim')
    assert_equal(torch.load(tmp_path / 'b.pth', weights_only=True)['model'], tensors)


@pytest.mark.parametrize('tensors, call', [
    (microsoft_vit(768, 12, 12, 14, 16, fill=shapes_only),
     "timm.mim.create_mim('simmim', 'beit_base_patch16_224', img_size=224, model_kwargs=dict(use_abs_pos_emb=False, "
     'use_rel_pos_bias=False, use_shared_rel_pos_bias=True, init_values=0.1, qkv_bias=True, use_fc_norm=False, '
     'patch_size=16, embed_dim=768, depth=12, num_heads=12))'),
    (microsoft_swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 6, 192, fill=shapes_only),
     "timm.mim.create_mim('simmim', 'swin_base_patch4_window7_224', img_size=192, model_kwargs=dict(window_size=6))"),
], ids=['vit', 'swin'])
def test_published_models_are_recognised_without_hints(tensors, call):
    checkpoint = FORMATS['microsoft-simmim'].read(Source(tensors, 'model', {}), Hints())
    assert checkpoint.recipe.call() == call
