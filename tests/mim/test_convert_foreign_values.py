"""Files that anybody may have written: what they cannot make the conversion do, and what is refused by name."""
import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from reference_tensors import facebook_ijepa, facebook_mae, microsoft_swin, microsoft_vit
from timm.mim import TeacherTarget, create_mim
from timm.mim.convert import ConversionError, convert
from timm.mim.convert.__main__ import main

HEADS = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))
SMALL = dict(depth=1, decoder_depth=1)
VIT = dict(patch_size=8, embed_dim=48, depth=1, num_heads=4)
RECIPE = dict(method='mae', model='vit_base_patch16_224', img_size=[32, 32], model_kwargs=VIT,
              options=dict(decoder_dim=32, decoder_depth=1, decoder_heads=2))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Pretrained weights and folders of the hub fail the test."""
    for name in ('load_pretrained', 'load_custom_pretrained'):
        monkeypatch.setattr(timm.models._builder, name, lambda *args, **kwargs: pytest.fail('weights were fetched'))
    monkeypatch.setattr(timm.models._factory, 'load_checkpoint', lambda *args: pytest.fail('a file was opened'))


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
    """The tensors of a method, as this command writes them."""
    folder = tmp_path_factory.mktemp('ours')
    torch.save(dict(model=facebook_mae(**SMALL)), folder / 'a.pth')
    convert(folder / 'a.pth', folder / 'b.safetensors', **HEADS)
    return load_file(folder / 'b.safetensors')


@pytest.fixture(scope='module')
def vitmae(tmp_path_factory):
    """Tensors and configuration of Hugging Face's ViTMAE."""
    folder = tmp_path_factory.mktemp('theirs')
    torch.save(dict(model=facebook_mae(**SMALL)), folder / 'a.pth')
    convert(folder / 'a.pth', folder / 'b', 'huggingface-vitmae', **HEADS)
    return load_file(folder / 'b' / 'model.safetensors'), json.loads((folder / 'b' / 'config.json').read_text())


def assert_refuses(message, source, to=None, **kwargs):
    dest = source.parent / ('dest.pth' if to == 'task' else 'dest.safetensors')
    with pytest.raises(ConversionError, match=message) as error:
        convert(source, dest, to, **kwargs)
    assert '\n' not in str(error.value) and not dest.exists()


def write_folder(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


class TestRecipes:
    @pytest.mark.parametrize('change, message', [
        (dict(model_kwargs=dict(VIT, checkpoint_path='/etc/hostname')), "'checkpoint_path' is not an argument of"),
        (dict(model_kwargs=dict(VIT, pretrained=True)), "'pretrained' is not an argument of vit_base_patch16_224; if"),
        (dict(model_kwargs=dict(VIT, pretrained_cfg=dict(file='/etc/hostname'))), "'pretrained_cfg' is not an arg"),
        (dict(model_kwargs=dict(VIT, device='cuda')), "'device' is not an argument"),
        (dict(model_kwargs=dict(VIT, depth=10 ** 9)), 'model_kwargs: depth is a value of type int, not a number up to'),
        (dict(model_kwargs=dict(VIT, embed_dim=dict(a=1))), 'embed_dim is a value of type dict'),
        (dict(model_kwargs=[1]), 'model_kwargs is of type list, not a dictionary'),
        (dict(options=dict(checkpoint_path='x')), "options: 'checkpoint_path' is not an argument of mae; if you want"),
        (dict(model=5), 'The recipe in the file: model is 5, not a text'),
        (dict(model='hf-hub:someone/something'), 'model is .hf-hub:someone/something., not a model that timm.list'),
        (dict(model='local-dir:/etc'), 'not a model that timm.list_models'),
        (dict(method='mea'), "method is 'mea', not one of the methods capi"),
        (dict(method=[]), r'method is \[\], not a text'),
        (dict(img_size='large'), "img_size is 'large', not one integer or two"),
        (dict(img_size=[0, 0]), r'img_size is \[0, 0\], not one integer or two'),
    ], ids=str)
    def test_only_arguments_of_the_model_pass(self, change, message, ours, tmp_path):
        recipe = {**RECIPE, **change}
        save_file(ours, tmp_path / 'a.safetensors', metadata=dict(mim=json.dumps(recipe)))
        assert_refuses(message, tmp_path / 'a.safetensors', 'task')
        state = dict(state_dict={}, task_state=dict(method=ours), mim=recipe)
        torch.save(state, tmp_path / 'b.pth')
        assert_refuses(message, tmp_path / 'b.pth', 'mim')

    def test_arguments_of_a_training_script_and_of_a_hub_folder(self, ours, tmp_path):
        args = argparse.Namespace(mim='mae', model='vit_base_patch16_224', model_kwargs=dict(VIT, checkpoint_path='x'))
        torch.save(dict(state_dict={}, task_state=dict(method=ours), args=args), tmp_path / 'a.pth')
        assert_refuses('The arguments in the file: model_kwargs: .checkpoint_path', tmp_path / 'a.pth', 'mim')
        encoder = {name[9:]: tensor for name, tensor in ours.items() if name.startswith('backbone.')}
        config = dict(architecture='vit_base_patch16_224', model_args=dict(VIT, pretrained=True))
        assert_refuses('config.json: model_args: .pretrained', write_folder(tmp_path / 'b', encoder, config), 'encoder')
        config['model_args']['img_size'] = 32
        del config['model_args']['pretrained']
        convert(write_folder(tmp_path / 'b', encoder, config), tmp_path / 'c.safetensors', 'encoder')

    def test_what_the_user_gives_is_not_read_from_the_file(self, ours, tmp_path):
        recipe = dict(RECIPE, model_kwargs=dict(VIT, embed_dim='large'))
        save_file(ours, tmp_path / 'a.safetensors', metadata=dict(mim=json.dumps(recipe)))
        assert_refuses("'.*' fails: ", tmp_path / 'a.safetensors', 'task')
        convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth', 'task', model_kwargs=dict(embed_dim=48))

    def test_teacher_is_left_out_and_said_so(self, tmp_path, capsys):
        torch.manual_seed(0)
        teacher = TeacherTarget(timm.create_model('test_vit', num_classes=0, img_size=64), (0.,) * 3, (1.,) * 3)
        method = create_mim('simmim', 'test_vit', 64, mask_unit=16, target=teacher)
        recipe = dict(method='simmim', model='test_vit', img_size=[64, 64], model_kwargs={},
                      options=dict(mask_unit=16, target='test_vit'))
        source = tmp_path / 'a.safetensors'
        save_file(method.state_dict(), source, metadata=dict(mim=json.dumps(recipe)))
        assert main([str(source), str(tmp_path / 'b.pth'), '--to', 'task']) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith("note: The teacher 'test_vit' is omitted, since checkpoints do not contain it")
        assert "target='test_vit'" in captured.out
        recipe['options']['target'] = 'hf-hub:someone/something'
        save_file(method.state_dict(), source, metadata=dict(mim=json.dumps(recipe)))
        assert_refuses("target 'hf-hub:someone/something' is none of pixels", source, 'task')
        conversion = convert(source, tmp_path / 'c.safetensors', 'encoder')
        assert "'hf-hub:someone/something' is omitted" in conversion.notes[0]


class TestTensors:
    @pytest.mark.parametrize('build, change, message', [
        (microsoft_swin, {'encoder.patch_embed.proj.weight': ...}, 'missing.*: encoder.patch_embed.proj.weight'),
        (microsoft_swin, {'encoder.patch_embed.proj.weight': torch.zeros(16)},
         r'of another shape: encoder.patch_embed.proj.weight'),
        (microsoft_vit, {'encoder.rel_pos_bias.relative_position_bias_table': torch.zeros(2, 4)},
         'of too few distances: encoder.rel_pos_bias.relative_position_bias_table'),
        (microsoft_vit, {'encoder.rel_pos_bias.relative_position_index': torch.zeros(1)},
         'encoder.rel_pos_bias.relative_position_index is a constant'),
        (facebook_mae, {'pos_embed': torch.zeros(17, 48)}, r'pos_embed \(17 x 48, not 3 dimensions of length 1'),
        (facebook_mae, {'pos_embed': torch.zeros(1, 1, 48)}, r'without patches: pos_embed \(1 positions'),
        (facebook_mae, {'patch_embed.proj.weight': torch.zeros(48, 3, 0, 8)}, r'weight \(48 x 3 x 0 x 8, not 4 dim'),
        (facebook_mae, {'blocks.0.mlp.fc1.weight': torch.tensor(1.)}, r'blocks.0.mlp.fc1.weight \(scalar, not 2 dim'),
        (facebook_mae, {'mask_token': torch.zeros(())}, r'mask_token \(scalar, not 3 dimensions'),
        (facebook_mae, {'blocks.99999.norm1.weight': torch.zeros(48)}, 'above the number of tensors: blocks.99999'),
        (facebook_mae, {'norm.weight': torch.ones(48, dtype=torch.int64)},
         r'of another type: norm.weight \(int64, not float32\)'),
        (facebook_mae, {'norm.weight': torch.full((48,), float('nan'))}, 'with infinite numbers or NaN: norm.weight'),
        (facebook_mae, {'norm.weight': torch.full((48,), float('inf'))}, 'with infinite numbers or NaN: norm.weight'),
        (facebook_mae, {'norm.weight': torch.ones(48).to_sparse()}, 'quantized, sparse or nested: norm.weight'),
        (facebook_mae, {'norm.weight': torch.quantize_per_tensor(torch.ones(48), 0.1, 0, torch.qint8)},
         'quantized, sparse or nested: norm.weight'),
        (facebook_mae, {'norm.weight': torch.empty(48, device='meta')}, 'without data: norm.weight'),
        (facebook_mae, {'norm.weight': torch.zeros(1).expand(1 << 40)}, 'larger than their memory: norm.weight'),
        (facebook_mae, {'norm.weight': None}, 'values that are not tensors: norm.weight'),
        (facebook_mae, {'module.norm.weight': torch.ones(48)}, 'two tensors with the name norm.weight, one of'),
        (facebook_mae, {'odd\nname': torch.ones(48)}, r'unknown: odd\?name'),
    ], ids=lambda value: getattr(value, '__name__', None))
    def test_refused_by_name(self, build, change, message, tmp_path):
        tensors = {name: tensor for name, tensor in {**build(), **change}.items() if tensor is not ...}
        torch.save(dict(model=tensors), tmp_path / 'a.pth')
        assert_refuses(message, tmp_path / 'a.pth', **(HEADS if build is facebook_mae else {}))

    @pytest.mark.parametrize('content, message', [
        (dict(facebook_ijepa(), encoder=None), 'encoder is of type NoneType, not a dictionary of tensors'),
        (dict(facebook_ijepa(), predictor=[1]), 'predictor is of type list, not a dictionary'),
        (dict(state_dict=5), 'state_dict is of type int'),
        (dict(state_dict={}, task_state=[1]), 'task_state is not a dictionary with the tensors of the method'),
        (dict(state_dict={'a': torch.ones(1)}, task_state=dict(method={'backbone.a': torch.ones(1)})),
         'two tensors with the name backbone.a'),
    ], ids=['encoder', 'predictor', 'state_dict', 'task_state', 'method'])
    def test_parts_that_are_no_tensors(self, content, message, tmp_path):
        torch.save(content, tmp_path / 'a.pth')
        assert_refuses(message, tmp_path / 'a.pth')

    @pytest.mark.parametrize('build, model, message', [
        (microsoft_swin, 'vit_base_patch16_224', 'a SwinTransformer, but vit_base_patch16_224 is a VisionTransformer'),
        (facebook_mae, 'swin_tiny_patch4_window7_224', "'.*swin_tiny_patch4_window7_224.*' fails: "),
        (facebook_mae, 'resnet18', "'.*resnet18.*' fails: "),
    ])
    def test_model_of_another_family(self, build, model, message, tmp_path):
        torch.save(dict(model=build()), tmp_path / 'a.pth')
        assert_refuses(message, tmp_path / 'a.pth', model=model, options=dict(decoder_heads=2) if build is facebook_mae
                       else {})


class TestSettings:
    def test_normalised_patches_are_read_from_the_arguments_of_the_reference(self, tmp_path):
        # main_pretrain.py of facebookresearch/mae saves `args` with norm_pix_loss; released files have none
        for norm_pix in (True, False):
            args = argparse.Namespace(model='mae_vit_base_patch16', norm_pix_loss=norm_pix, mask_ratio=0.5)
            torch.save(dict(model=facebook_mae(**SMALL), args=args), tmp_path / 'a.pth')
            conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', force=True, **HEADS)
            assert conversion.recipe.module.norm_pix is norm_pix and conversion.recipe.module.mask_ratio == 0.5
            assert not conversion.notes
        args.norm_pix_loss = 'no'
        torch.save(dict(model=facebook_mae(**SMALL), args=args), tmp_path / 'a.pth')
        assert_refuses("norm_pix_loss is 'no', not true or false", tmp_path / 'a.pth', **HEADS)

    def test_what_no_file_tells_is_said(self, tmp_path):
        torch.save(dict(model=facebook_mae(**SMALL)), tmp_path / 'a.pth')
        conversion = convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', **HEADS)
        assert 'norm_pix=True is assumed' in conversion.notes[0]
        assert not convert(tmp_path / 'a.pth', tmp_path / 'c.safetensors', 'encoder', **HEADS).notes

    @pytest.mark.parametrize('change, message', [
        (dict(hidden_size=64), 'config.json: hidden_size is 64, not 48, which the tensors show'),
        (dict(num_hidden_layers=2), 'num_hidden_layers is 2, not 1'),
        (dict(patch_size=16), 'patch_size is 16, not 8'),
        (dict(num_channels=1), 'num_channels is 1, not 3'),
        (dict(qkv_bias=False), 'qkv_bias is False, not True'),
        (dict(decoder_hidden_size=48), 'decoder_hidden_size is 48, not 32'),
        (dict(model_type='swin'), "model_type is 'swin', not vit_mae"),
        (dict(num_attention_heads='4'), "num_attention_heads is '4', not an integer"),
        (dict(num_attention_heads=5), 'fails: '),
        (dict(image_size=64), 'of another shape: .*position_embeddings'),
        (dict(image_size='large'), "image_size is 'large', not one integer or two"),
        (dict(norm_pix_loss=1), 'norm_pix_loss is 1, not true or false'),
        (dict(mask_ratio=7), 'mask_ratio is 7, not a number from 0 to 1'),
        ([1], 'config.json is of type list, not a dictionary'),
    ], ids=str)
    def test_configuration_that_contradicts_the_tensors(self, change, message, vitmae, tmp_path):
        tensors, config = vitmae
        config = {**config, **change} if isinstance(change, dict) else change
        assert_refuses(message, write_folder(tmp_path / 'a', tensors, config))

    def test_default_of_a_configuration_without_normalised_patches(self, vitmae, tmp_path):
        tensors, config = vitmae
        config = {name: value for name, value in config.items() if name != 'norm_pix_loss'}
        recipe = convert(write_folder(tmp_path / 'a', tensors, config), tmp_path / 'b.safetensors').recipe
        assert recipe.options['norm_pix'] is False  # that of transformers.ViTMAEConfig

    def test_two_names_of_one_tensor(self, vitmae, tmp_path):
        tensors, config = vitmae
        name = 'vit.encoder.layer.0.attention.output.dense.weight'
        tensors = {**tensors, 'vit.layers.0.attention.o_proj.weight': tensors[name].clone()}
        assert_refuses('name the same tensor', write_folder(tmp_path / 'a', tensors, config))

    def test_query_key_and_value_of_different_shapes(self, vitmae, tmp_path):
        tensors, config = vitmae
        name = 'vit.encoder.layer.0.attention.attention.key.weight'
        for tensor in (torch.zeros(48), torch.zeros(48, 48, dtype=torch.int64)):
            folder = write_folder(tmp_path / 'a', {**tensors, name: tensor}, config)
            assert_refuses(f'query, key and value of a block: {name}', folder)
