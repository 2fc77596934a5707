"""Conversion of Hugging Face's checkpoints: the same outputs with the same weights, and the same weights back.

Tolerance: as in test_simmim_parity.py.
"""
import pytest
import torch
from safetensors.torch import load_file, save_file

import timm
from conversion import assert_equal, load_method
from hugging_face import relative_difference
from test_mae_parity import patchify_without_check
from timm.mim import create_mim
from timm.mim.convert import ConversionError, convert
from timm.models.swin_transformer import SwinTransformer

transformers = pytest.importorskip('transformers')

FORWARD = 1e-5
VIT = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=64,
           patch_size=16, layer_norm_eps=1e-6)


def vitmae(**kwargs):
    config = dict(decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
                  decoder_intermediate_size=128, norm_pix_loss=True, mask_ratio=0.5)
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**VIT, **config, **kwargs}))


def vit_mim(**kwargs):
    return transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**{**VIT, 'encoder_stride': 16, **kwargs}))


def swin_mim(**kwargs):
    config = dict(embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 4], window_size=4, image_size=64, patch_size=4,
                  encoder_stride=16)
    return transformers.SwinForMaskedImageModeling(transformers.SwinConfig(**{**config, **kwargs}))


CASES = {
    'vitmae': (vitmae, {}, 'huggingface-vitmae'),
    'vitmae one channel': (vitmae, dict(num_channels=1, patch_size=8, image_size=32), 'huggingface-vitmae'),
    'vitmae not square': (vitmae, dict(image_size=(16, 36), patch_size=4), 'huggingface-vitmae'),
    'vit': (vit_mim, {}, 'huggingface-vit-mim'),
    'vit small patches': (vit_mim, dict(patch_size=8, encoder_stride=8, num_channels=4, qkv_bias=False),
                          'huggingface-vit-mim'),
    'swin': (swin_mim, {}, 'huggingface-swin-mim'),
    'swin no bias': (swin_mim, dict(depths=[1, 2], num_heads=[2, 4], encoder_stride=8, qkv_bias=False, mlp_ratio=3.),
                     'huggingface-swin-mim'),
}


def randomized(model):
    """A model in which no tensor is a constant, so that exchanged ones show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize('case', CASES)
def test_outputs_there_and_weights_back(case, tmp_path):
    build, kwargs, name = CASES[case]
    theirs = randomized(build(**kwargs))
    theirs.save_pretrained(tmp_path / 'theirs')
    conversion = convert(tmp_path / 'theirs', tmp_path / 'ours.safetensors')
    assert (conversion.source_format, conversion.dest_format) == (name, 'mim')
    ours = load_method(tmp_path / 'ours.safetensors', conversion.recipe)

    images = torch.randn(2, ours.in_chans, *ours.img_size)
    with torch.no_grad():
        if name == 'huggingface-vitmae':
            if ours.img_size[0] != ours.img_size[1]:
                patchify_without_check(theirs)
            noise = torch.rand(2, ours.num_patches)
            output, reference = ours(images, noise=noise), theirs(images, noise=noise)
            assert ours.mask_ratio == 0.5
            assert torch.equal(output.mask.flatten(1), reference.mask.bool())
            prediction = reference.logits[reference.mask.bool()]
            assert relative_difference(output.prediction.flatten(0, 1), prediction) < FORWARD
        else:
            output = ours(images)
            reference = theirs(images, bool_masked_pos=output.mask.flatten(1))
            assert relative_difference(output.prediction, reference.reconstruction) < FORWARD
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD

    convert(tmp_path / 'ours.safetensors', tmp_path / 'back', to=name)
    back, report = type(theirs).from_pretrained(tmp_path / 'back', output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
    assert_equal(back.state_dict(), theirs.state_dict())
    config = {key: value for key, value in back.config.to_dict().items() if not key.startswith('_')}
    assert config == {key: value for key, value in theirs.config.to_dict().items() if not key.startswith('_')}


@pytest.mark.parametrize('case', ['vitmae', 'vit', 'swin'])
def test_names_in_memory_are_read_too(case, tmp_path):
    build, kwargs, name = CASES[case]
    theirs = randomized(build(**kwargs))
    theirs.save_pretrained(tmp_path / 'theirs')
    save_file(theirs.state_dict(), tmp_path / 'memory.safetensors')
    assert load_file(tmp_path / 'memory.safetensors').keys() != load_file(
        tmp_path / 'theirs' / 'model.safetensors').keys()
    heads = {} if name == 'huggingface-swin-mim' else dict(num_heads=4)
    convert(tmp_path / 'theirs', tmp_path / 'a.safetensors')
    convert(tmp_path / 'memory.safetensors', tmp_path / 'b.safetensors', img_size=(64, 64), model_kwargs=heads,
            options=dict(decoder_heads=2, norm_pix=True) if name == 'huggingface-vitmae' else {})
    assert_equal(load_file(tmp_path / 'b.safetensors'), load_file(tmp_path / 'a.safetensors'))


@pytest.mark.parametrize('build, name, published', [
    # facebook/vit-mae-base and microsoft/swin-base-simmim-window6-192 on the hub, written by release 4
    (vitmae, 'huggingface-vitmae', [
        'decoder.decoder_layers.1.attention.attention.query.weight', 'vit.encoder.layer.1.attention.output.dense.bias',
    ]),
    (swin_mim, 'huggingface-swin-mim', [
        'swin.encoder.layers.1.blocks.0.attention.self.value.weight', 'swin.encoder.layers.0.downsample.norm.weight',
    ]),
])
def test_names_that_are_written_are_the_published_ones(build, name, published, tmp_path):
    build().save_pretrained(tmp_path / 'theirs')
    convert(tmp_path / 'theirs', tmp_path / 'back', to=name)
    assert set(published) < load_file(tmp_path / 'back' / 'model.safetensors').keys()


def test_encoder_alone(tmp_path):
    theirs = randomized(transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT, mask_ratio=0.)))
    theirs.save_pretrained(tmp_path / 'theirs')
    recipe = convert(tmp_path / 'theirs', tmp_path / 'encoder.safetensors', to='encoder').recipe
    encoder = timm.create_model(
        recipe.model, num_classes=0, img_size=recipe.img_size, **recipe.model_kwargs,
        checkpoint_path=tmp_path / 'encoder.safetensors').eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        reference = theirs(images, noise=torch.arange(16.).expand(2, -1)).last_hidden_state
        assert relative_difference(encoder.forward_features(images), reference) < FORWARD
    convert(tmp_path / 'encoder.safetensors', tmp_path / 'back', to='huggingface-vitmae')
    back = transformers.ViTMAEModel.from_pretrained(tmp_path / 'back')
    assert_equal(back.state_dict(), theirs.state_dict())
    with pytest.raises(ConversionError, match='the source contains only an encoder: use --to encoder'):
        convert(tmp_path / 'theirs', tmp_path / 'method.safetensors')


def test_images_that_are_not_square(tmp_path):
    theirs = randomized(vitmae(image_size=(16, 36), patch_size=4))
    theirs.save_pretrained(tmp_path / 'theirs')
    recipe = convert(tmp_path / 'theirs', tmp_path / 'ours.safetensors').recipe
    assert recipe.img_size == (16, 36)
    with pytest.raises(ConversionError, match='facebook-mae cannot hold this model: images and patches must be square'):
        convert(tmp_path / 'ours.safetensors', tmp_path / 'a.pth', to='facebook-mae')

    method = create_mim(recipe.method, recipe.model, (16, 24), dict(recipe.model_kwargs), **recipe.options)
    save_file(method.state_dict(), tmp_path / 'b.safetensors')
    kwargs = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))
    with pytest.raises(ConversionError, match='24 patches do not form a square'):
        convert(tmp_path / 'b.safetensors', tmp_path / 'b', to='huggingface-vitmae', **kwargs)
    with pytest.raises(ConversionError, match='the number of patches must be a square, got 24'):
        convert(tmp_path / 'b.safetensors', tmp_path / 'b', to='huggingface-vitmae', img_size=(16, 24), **kwargs)


def test_ratio_to_encode_with_is_none_to_train_with(tmp_path):
    vitmae(mask_ratio=0.).save_pretrained(tmp_path / 'theirs')
    recipe = convert(tmp_path / 'theirs', tmp_path / 'ours.safetensors').recipe
    assert recipe.options == dict(decoder_dim=32, decoder_depth=2, decoder_heads=2, norm_pix=True)


def test_layers_that_ours_have_in_one_way_only(tmp_path):
    vitmae(qkv_bias=False).save_pretrained(tmp_path / 'no_bias')  # our decoder has biases
    with pytest.raises(ConversionError, match='missing: decoder.decoder_layers.0.attention.attention.query.bias, '):
        convert(tmp_path / 'no_bias', tmp_path / 'ours.safetensors')
    vitmae(hidden_act='relu').save_pretrained(tmp_path / 'relu')
    with pytest.raises(ConversionError, match='hidden_act relu'):
        convert(tmp_path / 'relu', tmp_path / 'ours.safetensors')


def test_window_larger_than_a_map(tmp_path):
    # theirs builds such a model with tables of the full window, and fails in its forward pass
    method = create_mim('simmim', SwinTransformer(img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2),
                                                  patch_size=8, window_size=8))
    save_file(method.state_dict(), tmp_path / 'ours.safetensors')
    with pytest.raises(ConversionError, match='all windows must have the same size, but here are 2'):
        convert(tmp_path / 'ours.safetensors', tmp_path / 'theirs', to='huggingface-swin-mim', img_size=(64, 64))


def test_indices_of_older_swin_files(tmp_path):
    theirs = randomized(swin_mim())
    theirs.save_pretrained(tmp_path / 'theirs')
    tensors = load_file(tmp_path / 'theirs' / 'model.safetensors')
    index = theirs.swin.encoder.layers[0].blocks[0].attention.relative_position_bias.relative_position_index
    index = index.view(16, 16)  # release 5 has it flat, and in no file
    name = 'swin.encoder.layers.0.blocks.0.attention.self.relative_position_index'
    for tensor in (index, index.flip(0)):
        save_file({**tensors, name: tensor.contiguous()}, tmp_path / 'theirs' / 'model.safetensors')
        if tensor is index:
            convert(tmp_path / 'theirs', tmp_path / 'ours.safetensors')
        else:
            with pytest.raises(ConversionError, match=f'{name} is a constant'):
                convert(tmp_path / 'theirs', tmp_path / 'other.safetensors')
