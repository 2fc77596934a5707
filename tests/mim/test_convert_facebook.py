"""Conversion of checkpoints of facebookresearch/mae and facebookresearch/ijepa."""
import argparse

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from conversion import assert_equal, load_method, there_and_back
from hugging_face import relative_difference
from reference_tensors import facebook_ijepa, facebook_mae, shapes_only
from timm.mim.convert import FORMATS, ConversionError, Hints, convert
from timm.mim.convert.checkpoint import check_tensors
from timm.mim.convert.files import Source
from timm.mim.convert.geometry import derive_recipe
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

FORWARD = 1e-5  # float32, the same sums in another order
HEADS = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))

# src/transformers/models/vit_mae/convert_vit_mae_to_pytorch.py of huggingface/transformers, release 4
HUGGING_FACE_NAMES = {
    'cls_token': 'vit.embeddings.cls_token',
    'mask_token': 'decoder.mask_token',
    'pos_embed': 'vit.embeddings.position_embeddings',
    'decoder_pos_embed': 'decoder.decoder_pos_embed',
    'patch_embed.proj.weight': 'vit.embeddings.patch_embeddings.projection.weight',
    'norm.bias': 'vit.layernorm.bias',
    'decoder_embed.weight': 'decoder.decoder_embed.weight',
    'decoder_norm.bias': 'decoder.decoder_norm.bias',
    'decoder_pred.weight': 'decoder.decoder_pred.weight',
    'blocks.1.norm1.weight': 'vit.encoder.layer.1.layernorm_before.weight',
    'blocks.1.norm2.bias': 'vit.encoder.layer.1.layernorm_after.bias',
    'blocks.0.attn.proj.weight': 'vit.encoder.layer.0.attention.output.dense.weight',
    'blocks.0.mlp.fc1.bias': 'vit.encoder.layer.0.intermediate.dense.bias',
    'blocks.0.mlp.fc2.weight': 'vit.encoder.layer.0.output.dense.weight',
    'decoder_blocks.0.norm1.bias': 'decoder.decoder_layers.0.layernorm_before.bias',
    'decoder_blocks.0.attn.proj.bias': 'decoder.decoder_layers.0.attention.output.dense.bias',
    'decoder_blocks.0.mlp.fc1.weight': 'decoder.decoder_layers.0.intermediate.dense.weight',
}


@pytest.mark.parametrize('kwargs', [{}, dict(in_chans=1, patch=4, depth=1, decoder_depth=2)], ids=str)
def test_mae_there_and_back(kwargs, tmp_path):
    tensors = facebook_mae(**kwargs)
    conversion, back = there_and_back(tensors, tmp_path, 'facebook-mae', **HEADS)
    assert back.keys() == {'model'}
    assert_equal(back['model'], tensors)
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    patch = kwargs.get('patch', 8)
    assert method.img_size == (4 * patch, 4 * patch) and method.in_chans == kwargs.get('in_chans', 3)
    model = VisionTransformer(
        img_size=4 * patch, patch_size=patch, in_chans=method.in_chans, embed_dim=48, depth=len(method.backbone.blocks),
        num_heads=4, num_classes=0)
    encoder = {name: tensor for name, tensor in tensors.items() if 'decoder' not in name and name != 'mask_token'}
    assert_equal(method.backbone.state_dict(), checkpoint_filter_fn(dict(model=encoder), model))


def test_mae_by_way_of_hugging_face(tmp_path):
    transformers = pytest.importorskip('transformers')
    tensors = facebook_mae()
    torch.save(dict(model=tensors), tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'theirs', to='huggingface-vitmae', **HEADS)
    converted = load_file(tmp_path / 'theirs' / 'model.safetensors')
    for name, their_name in HUGGING_FACE_NAMES.items():
        assert torch.equal(converted[their_name], tensors[name]), name
    for i, part in enumerate(('query', 'key', 'value')):
        for ours, theirs, width in (
                ('blocks', 'vit.encoder.layer', 48), ('decoder_blocks', 'decoder.decoder_layers', 32)):
            for kind in ('weight', 'bias'):
                fused = tensors[f'{ours}.0.attn.qkv.{kind}']
                split = converted[f'{theirs}.0.attention.attention.{part}.{kind}']
                assert torch.equal(split, fused[i * width:(i + 1) * width])

    recipe = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', **HEADS).recipe
    ours = load_method(tmp_path / 'b.safetensors', recipe)
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / 'theirs').eval()
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        output, reference = ours(images, noise=noise), theirs(images, noise=noise)
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD
    mask = reference.mask.bool()
    assert relative_difference(output.prediction.flatten(0, 1), reference.logits[mask]) < FORWARD


def test_mae_encoder_alone(tmp_path):
    # mae_pretrain_vit_*.pth as released; training saves its arguments, too
    tensors = facebook_mae(encoder=True)
    torch.save(dict(model=tensors, args=argparse.Namespace(model='mae_vit_base_patch16'), epoch=3), tmp_path / 'a.pth')
    kwargs = dict(model_kwargs=dict(num_heads=4))
    conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', to='encoder', **kwargs)
    assert conversion.source_format == 'facebook-mae'
    assert_equal(load_file(tmp_path / 'b.safetensors'), tensors)
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.pth', to='facebook-mae')
    assert_equal(torch.load(tmp_path / 'c.pth', weights_only=True)['model'], tensors)
    with pytest.raises(ConversionError, match='--mim-kwargs are for a method'):
        convert(tmp_path / 'a.pth', tmp_path / 'd.safetensors', to='encoder', options=dict(decoder_heads=2), **kwargs)
    for to in ('mim', 'task'):
        with pytest.raises(ConversionError, match='the source contains only an encoder: use --to encoder'):
            dest = tmp_path / ('d.safetensors' if to == 'mim' else 'd.pth')
            convert(tmp_path / 'a.pth', dest, to=to, **kwargs)


def test_ijepa_there_and_back(tmp_path):
    content = facebook_ijepa()  # 52 * (60 / 52) is less than 60 in floats
    training = dict(content, opt=dict(state={}), scaler=None, epoch=1, loss=0.1, batch_size=2, world_size=1, lr=1e-3)
    conversion, back = there_and_back(
        training, tmp_path, 'facebook-ijepa', wrapped=False, model_kwargs=dict(num_heads=4))
    assert back.keys() == content.keys()
    for part in content:
        assert_equal(back[part], content[part])

    model = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=52, depth=2, num_heads=4, mlp_ratio=1.154, num_classes=0,
        class_token=False, global_pool='avg', fc_norm=False)
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    assert_equal(method.backbone.state_dict(), checkpoint_filter_fn(content, model))
    for to, part in (('encoder', 'encoder'), ('target-encoder', 'target_encoder')):
        path = tmp_path / f'{to}.safetensors'
        convert(tmp_path / 'a.pth', path, to=to, model_kwargs=dict(num_heads=4))
        expected = checkpoint_filter_fn(dict(encoder=content[part]), model)
        assert_equal(load_file(path), expected)
        model.load_state_dict(load_file(path))


def test_ijepa_predictor_computes_the_same(tmp_path):
    content = facebook_ijepa()
    torch.save(content, tmp_path / 'a.pth')
    recipe = convert(
        tmp_path / 'a.pth', tmp_path / 'b.safetensors', model_kwargs=dict(num_heads=4),
        options=dict(predictor_heads=2)).recipe
    method = load_method(tmp_path / 'b.safetensors', recipe)
    images = torch.randn(2, 3, 48, 48)
    context = torch.tensor([[0, 3, 5, 6, 9], [1, 2, 4, 7, 15]])
    targets = torch.tensor([[[10, 11], [12, 13]], [[8, 9], [0, 3]]])
    with torch.no_grad():
        output = method(images, mask=(context, targets))
        encoded = encode(content['encoder'], images, 4, context)
        for t in range(2):
            expected = predict(content['predictor'], encoded, context, targets[:, t], 2)
            assert relative_difference(output.prediction[:, t], expected) < FORWARD
        whole = encode(content['target_encoder'], images, 4, torch.arange(36).expand(2, -1))
        whole = F.layer_norm(whole, (52,)).unsqueeze(1).expand(-1, 2, -1, -1)
        expected = whole.gather(2, targets.unsqueeze(-1).expand(-1, -1, -1, 52))
    assert relative_difference(output.target, expected) < FORWARD


def encode(tensors, images, num_heads, places):
    """The encoder of the paper, in plain functions of its tensors."""
    weights = {name[len('module.'):]: tensor for name, tensor in tensors.items()}
    x = F.conv2d(images, weights['patch_embed.proj.weight'], weights['patch_embed.proj.bias'], stride=8)
    x = x.flatten(2).transpose(1, 2) + weights['pos_embed']
    x = x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    for i in range(2):
        x = transformer_block(x, weights, f'blocks.{i}', num_heads)
    return layer_norm(x, weights, 'norm')


def predict(tensors, encoded, context, target, num_heads):
    """The predictor of the paper for one target block each."""
    weights = {name[len('module.'):]: tensor for name, tensor in tensors.items()}
    positions = weights['predictor_pos_embed'][0]
    x = linear(encoded, weights, 'predictor_embed') + positions[context]
    x = torch.cat([x, weights['mask_token'] + positions[target]], dim=1)
    for i in range(2):
        x = transformer_block(x, weights, f'predictor_blocks.{i}', num_heads)
    x = layer_norm(x, weights, 'predictor_norm')[:, context.shape[1]:]
    return linear(x, weights, 'predictor_proj')


def transformer_block(x, weights, name, num_heads):
    q, k, v = (
        part.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for part in linear(layer_norm(x, weights, f'{name}.norm1'), weights, f'{name}.attn.qkv').chunk(3, dim=-1))
    attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    x = x + linear((attention @ v).transpose(1, 2).flatten(2), weights, f'{name}.attn.proj')
    hidden = F.gelu(linear(layer_norm(x, weights, f'{name}.norm2'), weights, f'{name}.mlp.fc1'))
    return x + linear(hidden, weights, f'{name}.mlp.fc2')


def linear(x, weights, name):
    return F.linear(x, weights[f'{name}.weight'], weights[f'{name}.bias'])


def layer_norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'], 1e-6)


def test_published_mae_is_recognised_without_hints():
    for tensors, call in (
            (facebook_mae(768, 12, 512, 8, 196, 16, fill=shapes_only),
             "timm.mim.create_mim('mae', 'vit_base_patch16_224', img_size=224, decoder_dim=512, decoder_depth=8, "
             'decoder_heads=16)'),
            (facebook_mae(1280, 32, patches=256, patch=14, encoder=True, fill=shapes_only),
             "timm.create_model('vit_huge_patch14_224', num_classes=0, img_size=224)"),
    ):
        checkpoint = FORMATS['facebook-mae'].read(Source(tensors, 'model', {}), Hints())
        assert checkpoint.recipe.call() == call
        heads = Hints(model_kwargs=dict(num_heads=12 if 'base' in call else 16))
        assert FORMATS['facebook-mae'].read(Source(tensors, 'model', {}), heads).recipe == checkpoint.recipe


def test_published_ijepa_is_recognised_without_hints():
    parts = facebook_ijepa(1408, 40, 6144, 384, 12, 196, 16, fill=shapes_only)
    tensors = FORMATS['facebook-ijepa'].to_ours({
        f'{part}.{name[len("module."):]}': tensor for part in parts for name, tensor in parts[part].items()})
    recipe = derive_recipe(tensors, 'ijepa', 'vit', Hints(), class_token=False)
    assert recipe.call() == (
        "timm.mim.create_mim('ijepa', 'vit_giant_patch16_gap_224', img_size=224, predictor_dim=384, "
        'predictor_depth=12)')
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith('backbone.')}
    check_tensors(recipe.encoder().tensors(), encoder, 'the giant')
