"""Pixio's checkpoints, those of transformers and those with the names of the authors' code."""
import pytest
import torch
from safetensors.torch import load_file

import timm
from conversion import assert_equal, load_method
from hugging_face import relative_difference
from timm.mim import create_mim
from timm.mim.convert import ConversionError, convert
from test_convert_huggingface import randomized

transformers = pytest.importorskip('transformers')


def pixio(**kwargs):
    config = dict(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16, **kwargs)
    return randomized(transformers.PixioModel(transformers.PixioConfig(**config)))


@pytest.mark.parametrize('kwargs', [{}, dict(n_cls_tokens=3, mlp_ratio=3, num_channels=1, qkv_bias=False)], ids=str)
def test_features_are_those_of_transformers(kwargs, tmp_path):
    theirs = pixio(**kwargs)
    theirs.save_pretrained(tmp_path / 'theirs')
    conversion = convert(tmp_path / 'theirs', tmp_path / 'ours.safetensors', to='encoder')
    recipe = conversion.recipe
    assert conversion.source_format == 'huggingface-pixio'
    assert recipe.model_kwargs['reg_tokens'] == kwargs.get('n_cls_tokens', 8) - 1
    ours = timm.create_model(
        recipe.model, img_size=recipe.img_size, num_classes=0, checkpoint_path=tmp_path / 'ours.safetensors',
        **recipe.model_kwargs).eval()
    assert type(ours) is timm.models.VisionTransformer
    images = torch.randn(2, ours.patch_embed.proj.in_channels, 64, 64)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        assert relative_difference(ours.forward_features(images), expected) < 1e-5

    convert(tmp_path / 'ours.safetensors', tmp_path / 'back', to='huggingface-pixio')
    back, report = transformers.PixioModel.from_pretrained(tmp_path / 'back', output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
    assert_equal(back.state_dict(), theirs.state_dict())
    assert back.config.n_cls_tokens == theirs.config.n_cls_tokens


def test_names_in_memory(tmp_path):
    theirs = pixio()
    theirs.save_pretrained(tmp_path / 'files')
    torch.save(theirs.state_dict(), tmp_path / 'memory.pth')
    convert(tmp_path / 'files', tmp_path / 'a.safetensors', to='encoder')
    convert(
        tmp_path / 'memory.pth', tmp_path / 'b.safetensors', to='encoder', model_kwargs=dict(num_heads=4))
    assert_equal(load_file(tmp_path / 'a.safetensors'), load_file(tmp_path / 'b.safetensors'))


def method_and_their_names():
    """Pixio on a small model, and its tensors with the names of the authors' code."""
    torch.manual_seed(0)
    method = create_mim(
        'mae', 'vit_base_patch16_224', img_size=128, mask_unit=64, decoder_pos_embed='learn', decoder_dim=32,
        decoder_depth=3, decoder_heads=2,
        model_kwargs=dict(embed_dim=48, depth=2, num_heads=4, reg_tokens=7))
    theirs = {}
    for name, tensor in randomized(method).state_dict().items():
        for old, new in (
                ('decoder.blocks.', 'decoder_blocks.'), ('decoder.norm.', 'decoder_norm.'),
                ('decoder.pos_embed', 'decoder_pos_embed'), ('decoder.mask_token', 'mask_token'), ('backbone.', '')):
            name = name.replace(old, new)
        theirs[name] = tensor
    theirs['cls_token'] = torch.cat([theirs['cls_token'], theirs.pop('reg_token')], 1)
    assert theirs['cls_token'].shape == (1, 8, 48) and theirs['pos_embed'].shape == (1, 8 + 64, 48)
    assert theirs['decoder_pos_embed'].shape == (1, 8 + 64, 32)
    return method, theirs


def test_authors_names_there_and_back(tmp_path):
    method, theirs = method_and_their_names()
    torch.save(dict(model=theirs), tmp_path / 'a.pth')
    given = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))
    conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', **given)
    assert conversion.source_format == 'facebook-pixio'
    ours = load_method(tmp_path / 'b.safetensors', conversion.recipe)
    assert ours.mask_unit == (64, 64) and ours.num_visible == 16
    assert isinstance(ours.decoder.pos_embed, torch.nn.Parameter)
    images, noise = torch.randn(2, 3, 128, 128), torch.rand(2, 4)
    assert torch.equal(ours(images, noise=noise).loss, method.eval()(images, noise=noise).loss)
    convert(tmp_path / 'b.safetensors', tmp_path / 'back.pth', to='facebook-pixio')
    assert_equal(torch.load(tmp_path / 'back.pth', weights_only=True)['model'], theirs)


def test_what_a_format_has_no_name_for(tmp_path):
    """A cross decoder is not that of MAE, although its blocks have the same beginning of names."""
    method = create_mim(
        'mae', 'vit_base_patch16_224', img_size=64, decoder='cross', decoder_dim=32, decoder_depth=1, decoder_heads=2,
        model_kwargs=dict(embed_dim=48, depth=1, num_heads=4))
    torch.save(dict(
        state_dict={n[9:]: t for n, t in method.state_dict().items() if n.startswith('backbone.')},
        task_state=dict(method={n: t for n, t in method.state_dict().items() if not n.startswith('backbone.')}),
        mim=dict(
            method='mae', model='vit_base_patch16_224', img_size=[64, 64],
            model_kwargs=dict(embed_dim=48, depth=1, num_heads=4),
            options=dict(decoder='cross', decoder_dim=32, decoder_depth=1, decoder_heads=2))), tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', to='mim')
    with pytest.raises(ConversionError, match='cannot hold this model: '):
        convert(tmp_path / 'a.pth', tmp_path / 'c.pth', to='facebook-mae')
    with pytest.raises(ConversionError, match='cannot hold this model: .*reg_token'):
        convert(tmp_path / 'a.pth', tmp_path / 'd.pth', to='facebook-pixio')
