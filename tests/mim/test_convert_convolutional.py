"""Conversion of checkpoints of keyu-tian/SparK and facebookresearch/ConvNeXt-V2."""
import argparse
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import timm
from conversion import assert_equal, load_method
from reference_tensors import fill, shapes_only
from reference_tensors_convolutional import DIMS, conv, convnext, convnext_block, filled, resnet, spark, spark_file
from timm.mim import create_mim
from timm.mim.convert import FORMATS, ConversionError, Hints, convert
from timm.mim.convert.files import Source
from timm.models.convnext import checkpoint_filter_fn

def spark_cases():
    v1 = dict(depths=(3, 3, 9, 3), dims=(12, 24, 48, 96), v2=False)
    return {
        'resnet': (filled(spark(resnet(widths=(8, 12, 16, 24)), (24, 16, 12, 8))), 'your_resnet', dict(
            model='resnet18', model_kwargs=dict(channels=[8, 12, 16, 24]))),
        'convnext': (filled(spark(convnext(**v1), (96, 48, 24, 12), has_batch_norm=False)), 'your_convnext', dict(
            model='convnext_tiny', model_kwargs=dict(dims=v1['dims']))),
    }


@pytest.mark.parametrize('case', ['resnet', 'convnext'])
def test_spark_there_and_back(case, tmp_path):
    tensors, arch, hints = spark_cases()[case]
    torch.save(spark_file(tensors, arch), tmp_path / 'a.pth')
    conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', **hints)
    assert (conversion.source_format, conversion.dest_format) == ('keyutian-spark', 'mim')
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    assert method.img_size == (64, 64) and method.mask_ratio == 0.5 and method.num_visible == 2
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.pth.tar', to='task')
    convert(tmp_path / 'c.pth.tar', tmp_path / 'd.pth', to='keyutian-spark')
    back = torch.load(tmp_path / 'd.pth', weights_only=True)
    buffers = {name: back['module'].pop(name) for name in ('imn_m', 'imn_s', 'norm_black')}
    assert back['input_size'] == 64 and buffers['norm_black'].shape == (1, 3, 64, 64)
    assert_equal(back['module'], tensors)

    # by way of the encoder, `*_timm_style.pth`
    convert(tmp_path / 'a.pth', tmp_path / 'e.safetensors', to='encoder', **hints)
    convert(tmp_path / 'e.safetensors', tmp_path / 'f.pth', to='keyutian-spark')
    prefix = 'sparse_encoder.sp_cnn.'
    encoder = {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    assert_equal(torch.load(tmp_path / 'f.pth', weights_only=True), encoder)
    conversion = convert(tmp_path / 'f.pth', tmp_path / 'g.safetensors', to='encoder', **hints)
    assert conversion.source_format == 'keyutian-spark'
    assert_equal(load_file(tmp_path / 'g.safetensors'), load_file(tmp_path / 'e.safetensors'))

    # timm's own filter reads the encoder, and the models compute the same
    model = timm.create_model(conversion.recipe.model, num_classes=0, **conversion.recipe.model_kwargs).eval()
    theirs = encoder if case == 'resnet' else checkpoint_filter_fn(encoder, model)
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and all(name.startswith('head.norm.') for name in missing)
    images, mask = torch.randn(2, 3, 64, 64), torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    again = create_mim('spark', model, img_size=64, decoder_dim=64).eval()
    again.load_state_dict({name: tensor for name, tensor in method.state_dict().items()
                           if not name.startswith('backbone.')}, strict=False)
    with torch.no_grad():
        assert torch.equal(again(images, mask=mask).prediction, method(images, mask=mask).prediction)


@pytest.mark.parametrize('encoder, name', [
    (resnet(), 'resnet18'), (resnet((3, 4, 6, 3), True), 'resnet50'), (resnet((3, 24, 36, 3), True), 'resnet200'),
    (convnext((3, 3, 27, 3), (96, 192, 384, 768), v2=False), 'convnext_small'),
    (convnext((3, 3, 27, 3), (128, 256, 512, 1024), v2=False), 'convnext_base'),
])
def test_published_models_of_spark(encoder, name):
    checkpoint = FORMATS['keyutian-spark'].read(Source(filled(encoder, shapes_only), 'flat', {}), Hints())
    assert checkpoint.recipe.model == name
    assert not timm.create_model(name, num_classes=0, device='meta').load_state_dict(
        {key[len('backbone.'):]: tensor for key, tensor in checkpoint.tensors.items()}).missing_keys


def sparse(dense):
    """The layout of models/convnextv2_sparse.py, by loops: the position of a kernel counts columns first."""
    tensors = {}
    for name, tensor in dense.items():
        parts = name.split('.')
        is_stem = name.startswith('downsample_layers.0.')
        if 'grn' in parts:
            tensor = tensor.reshape(1, -1)
        elif 'norm' in parts or (not is_stem and parts[0] == 'downsample_layers' and parts[2] == '0'):
            parts.insert(-1, 'ln')
        elif 'pwconv1' in parts or 'pwconv2' in parts:
            parts.insert(-1, 'linear')
        elif not is_stem and parts[-1] == 'bias':
            tensor = tensor.reshape(1, -1)
        elif not is_stem:
            outputs, inputs, rows, columns = tensor.shape
            kernel = torch.empty(rows * columns, inputs, outputs)
            for row in range(rows):
                for column in range(columns):
                    kernel[column * rows + row] = tensor[:, :, row, column].T
            parts[-1], tensor = 'kernel', kernel[:, 0] if 'dwconv' in parts else kernel
        tensors['.'.join(parts)] = tensor
    return tensors


def fcmae(dense, decoder=16, depth=1, patch=32):
    """A checkpoint of main_pretrain.py, models/fcmae.py."""
    shapes = {**conv('proj', decoder, DIMS[-1], 1), 'mask_token': (1, decoder, 1, 1),
              **conv('pred', patch * patch * 3, decoder, 1)}
    for i in range(depth):
        shapes.update(convnext_block(f'decoder.{i}', decoder))
    return {**{f'encoder.{name}': tensor for name, tensor in sparse(dense).items()}, **fill(shapes, 1)}


def test_fcmae_there_and_back(tmp_path):
    dense = fill(convnext())
    tensors = fcmae(dense)
    args = argparse.Namespace(model='convnextv2_atto', input_size=64, mask_ratio=0.5, norm_pix_loss=True)
    torch.save(dict(model=tensors, args=args, epoch=3), tmp_path / 'a.pth')
    conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    assert conversion.source_format == 'facebook-fcmae' and not conversion.notes
    assert conversion.recipe.model == 'convnextv2_atto'
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.pth', to='facebook-fcmae')
    assert_equal(torch.load(tmp_path / 'c.pth', weights_only=True)['model'], tensors)
    method = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    assert method.num_visible == 2 and method.img_size == (64, 64)

    # timm's filter reads the dense encoder
    model = timm.create_model('convnextv2_atto', num_classes=0)
    model.load_state_dict(checkpoint_filter_fn(dict(model=dense), model), strict=False)
    assert_equal(method.backbone.state_dict(), model.state_dict())

    # the decoder in plain functions of the tensors of the file
    images, mask = torch.randn(1, 3, 64, 64), torch.tensor([[[0, 1], [1, 0]]], dtype=torch.bool)
    seen = {}
    method.proj.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0]))
    with torch.no_grad():
        prediction = method(images, mask=mask).prediction
        x = F.conv2d(seen['x'].data, tensors['proj.weight'], tensors['proj.bias'])
        x = torch.where(mask.unsqueeze(1), tensors['mask_token'], x)
        t = {name.removeprefix('decoder.0.'): tensor for name, tensor in tensors.items()}
        y = F.conv2d(x, t['dwconv.weight'], t['dwconv.bias'], padding=3, groups=16).permute(0, 2, 3, 1)
        y = F.layer_norm(y, (16,), t['norm.weight'], t['norm.bias'], 1e-6)
        y = F.gelu(F.linear(y, t['pwconv1.weight'], t['pwconv1.bias']))
        norms = y.norm(dim=(1, 2), keepdim=True)
        y = t['grn.gamma'] * (y * (norms / (norms.mean(-1, keepdim=True) + 1e-6))) + t['grn.beta'] + y
        x = x + F.linear(y, t['pwconv2.weight'], t['pwconv2.bias']).permute(0, 3, 1, 2)
        x = F.conv2d(x, tensors['pred.weight'], tensors['pred.bias']).reshape(1, 32, 32, 3, 2, 2)
        expected = x.permute(0, 3, 4, 1, 5, 2).reshape(1, 3, 64, 64)  # (row, column, channel) of a cell
    torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=1e-4)


def test_fcmae_encoder(tmp_path):
    """convnextv2_*_1k_224_fcmae.pt as published."""
    dense = fill(convnext())
    torch.save(dict(model=dense), tmp_path / 'a.pt')
    conversion = convert(tmp_path / 'a.pt', tmp_path / 'b.safetensors', to='encoder')
    assert conversion.source_format == 'facebook-fcmae' and conversion.recipe.model == 'convnextv2_atto'
    convert(tmp_path / 'b.safetensors', tmp_path / 'c.pt', to='facebook-fcmae')
    assert_equal(torch.load(tmp_path / 'c.pt', weights_only=True)['model'], dense)
    model = timm.create_model('convnextv2_atto', num_classes=0)
    model.load_state_dict(load_file(tmp_path / 'b.safetensors'))
    with pytest.raises(ConversionError, match='the source contains only an encoder'):
        convert(tmp_path / 'a.pt', tmp_path / 'd.safetensors', to='mim')


@pytest.mark.parametrize('depths, width, name', [
    ((3, 3, 9, 3), 96, 'tiny'), ((3, 3, 27, 3), 128, 'base'), ((3, 3, 27, 3), 352, 'huge')])
def test_published_models_of_fcmae(depths, width, name):
    tensors = shapes_only(convnext(depths, [width * 2 ** stage for stage in range(4)]))
    assert FORMATS['facebook-fcmae'].read(Source(tensors, 'model', {}), Hints()).recipe.model == f'convnextv2_{name}'


def changed(tensors, **changes):
    return {**tensors, **{name.replace('__', '.'): tensor for name, tensor in changes.items()}}


@pytest.mark.parametrize('change, message', [
    (dict(bn9__weight=torch.zeros(3)), 'unknown: .*bn9.weight'),
    (dict(conv1__weight=torch.zeros(64, 3, 3, 3)), 'of another shape: .*conv1.weight'),
    (dict(layer1__9__conv1__weight=torch.zeros(64, 64, 3, 3)), 'no model of these depths and widths'),
])
def test_damage(change, message, tmp_path):
    torch.save(changed(filled(resnet()), **change), tmp_path / 'a.pth')
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', to='encoder')
    assert not (tmp_path / 'b.safetensors').exists()


def test_damaged_kernel(tmp_path):
    tensors = fcmae(fill(convnext()))
    tensors['encoder.stages.0.0.dwconv.kernel'] = torch.zeros(48, 40)
    torch.save(dict(model=tensors), tmp_path / 'a.pth')
    with pytest.raises(ConversionError, match='stages.0.0.dwconv.kernel is not the kernel of a sparse convolution'):
        convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors')


@pytest.mark.parametrize('model, kwargs, to, message', [
    ('efficientnet_lite0', {}, 'keyutian-spark', 'it is for ResNet and ConvNeXt models'),
    ('resnet18', {}, 'facebook-fcmae', 'it is for ConvNeXt V2 models'),
    ('convnextv2_atto', {}, 'keyutian-spark', 'it is for ResNet and ConvNeXt models'),
    ('convnext_atto', dict(act_layer='relu'), 'keyutian-spark', 'mlp.act is ReLU'),
    ('convnextv2_atto', dict(stem_type='overlap'), 'facebook-fcmae', 'cannot hold this model: '),
    ('test_convnext', {}, 'facebook-fcmae', 'cannot hold this model'),
])
def test_models_that_a_format_cannot_hold(model, kwargs, to, message, tmp_path):
    module = timm.create_model(model, num_classes=0, **kwargs)
    torch.save(module.state_dict(), tmp_path / 'a.pth')
    save_encoder(module, tmp_path / 'a.safetensors')
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth', to=to, model=model, model_kwargs=kwargs)


def test_a_final_norm_is_not_dropped(tmp_path):
    module = timm.create_model('convnextv2_atto', num_classes=0)
    torch.nn.init.constant_(module.head.norm.bias, math.pi)
    save_encoder(module, tmp_path / 'a.safetensors')
    with pytest.raises(ConversionError, match='head.norm.bias is not the initial one, and the format has no final'):
        convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth', to='facebook-fcmae', model='convnextv2_atto')


def save_encoder(module, path):
    save_file(module.state_dict(), path, metadata=dict(mim='{"model": "resnet18"}'))
