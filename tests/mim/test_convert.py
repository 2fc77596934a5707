"""Conversion of checkpoints: our own formats, the command, and what is refused."""
import argparse
import os
import runpy
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from conversion import assert_equal
from mutations import flip_a_bit
from reference_tensors import facebook_mae, microsoft_swin
from timm.mim import create_mim
from timm.mim.convert import FORMATS, ConversionError, convert
from timm.mim.convert.__main__ import main
from timm.task import MaskedImageModelingTask

VIT = dict(patch_size=8, embed_dim=48, depth=2, num_heads=4)
DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)
HEADS = dict(model_kwargs=dict(num_heads=4), options=dict(decoder_heads=2))


def mae(model='vit_base_patch16_224', **kwargs):
    torch.manual_seed(0)
    return create_mim('mae', model, 32, {**VIT, **kwargs}, **DECODER)


@pytest.fixture
def facebook_file(tmp_path):
    torch.save(dict(model=facebook_mae()), tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def assert_refuses(message, source, dest, *args, **kwargs):
    """Refused with one line, and nothing was written."""
    before = set(os.listdir(os.path.dirname(dest)))
    with pytest.raises(ConversionError, match=message) as error:
        convert(source, dest, *args, **kwargs)
    assert '\n' not in str(error.value)
    assert set(os.listdir(os.path.dirname(dest))) == before


class TestOurFormats:
    def test_method_task_and_encoder(self, tmp_path):
        method = mae()
        save_file(method.state_dict(), tmp_path / 'a.safetensors')
        recipe = convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth.tar', to='task', **HEADS).recipe
        assert (recipe.method, recipe.model, recipe.model_kwargs) == ('mae', 'vit_base_patch16_224', VIT)
        other = MaskedImageModelingTask(mae(), verbose=False)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        content = torch.load(tmp_path / 'b.pth.tar', weights_only=True)
        other.load_checkpoint_state(content['state_dict'], content['task_state'])
        assert_equal(other.get_method().state_dict(), method.state_dict())

        convert(tmp_path / 'b.pth.tar', tmp_path / 'c.safetensors', to='mim')
        assert_equal(load_file(tmp_path / 'c.safetensors'), method.state_dict())
        convert(tmp_path / 'c.safetensors', tmp_path / 'd.safetensors', to='encoder')
        assert_equal(load_file(tmp_path / 'd.safetensors'), method.backbone.state_dict())

    def test_what_train_py_saves(self, tmp_path):
        # a model that is not read off its tensors, but named in the arguments
        torch.manual_seed(0)
        model_kwargs = dict(embed_dim=12, num_heads=1, stages=(1, 1, 1, 1))
        method = create_mim('mae', 'hiera_tiny_224', 64, model_kwargs, mask_ratio=0.5, **DECODER)
        task = MaskedImageModelingTask(method, verbose=False)
        args = argparse.Namespace(
            mim='mae', model='hiera_tiny_224', model_kwargs=model_kwargs, img_size=[64, 64], in_chans=None,
            mask_ratio=0.5, mask_unit=32, mim_kwargs=DECODER)
        ema = {name: tensor + 1 for name, tensor in method.state_dict().items()}
        state = dict(
            task.get_checkpoint_state(), args=args, epoch=1, optimizer={}, version=2,
            state_dict_ema={k[len('backbone.'):]: v for k, v in ema.items() if k.startswith('backbone.')},
            task_state_ema=dict(method={k: v for k, v in ema.items() if not k.startswith('backbone.')}))
        torch.save(state, tmp_path / 'last.pth.tar')
        recipe = convert(tmp_path / 'last.pth.tar', tmp_path / 'a.safetensors', to='mim').recipe
        assert recipe.options == dict(DECODER, mask_ratio=0.5, mask_unit=32)
        assert_equal(load_file(tmp_path / 'a.safetensors'), method.state_dict())
        convert(tmp_path / 'last.pth.tar', tmp_path / 'b.safetensors', to='mim', ema=True)
        assert_equal(load_file(tmp_path / 'b.safetensors'), ema)
        convert(tmp_path / 'a.safetensors', tmp_path / 'c.safetensors', to='encoder')
        encoder = timm.create_model(
            'hiera_tiny_224', img_size=64, num_classes=0, **model_kwargs, checkpoint_path=tmp_path / 'c.safetensors')
        assert_equal(encoder.state_dict(), method.backbone.state_dict())
        assert_refuses('facebook-mae cannot hold this model: it is for plain vision', tmp_path / 'a.safetensors',
                       tmp_path / 'd.pth', 'facebook-mae')

        save_file(method.state_dict(), tmp_path / 'e.safetensors')
        assert_refuses('or name the model with --model NAME', tmp_path / 'e.safetensors', tmp_path / 'f.safetensors',
                       'encoder')
        torch.save(dict(state_dict={}), tmp_path / 'e.pth')
        for name in ('a.safetensors', 'e.pth'):
            assert_refuses('no moving average', tmp_path / name, tmp_path / 'f.safetensors', 'encoder', ema=True)

    def test_named_model(self, tmp_path):
        # what --model names is believed, and checked
        method = mae('vit_base_patch16_gap_224')
        save_file(method.state_dict(), tmp_path / 'a.safetensors')
        convert(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', to='encoder', model='vit_base_patch16_gap_224',
                img_size=(32, 32), model_kwargs=VIT)
        assert_equal(load_file(tmp_path / 'b.safetensors'), method.backbone.state_dict())
        assert_refuses('missing: backbone.cls_token, backbone.blocks.2.norm1.weight', tmp_path / 'a.safetensors',
                       tmp_path / 'c.safetensors', 'mim', model='vit_base_patch16_224', options=DECODER)
        assert_refuses("timm has no model 'vit_bass'", tmp_path / 'a.safetensors', tmp_path / 'c.safetensors', 'mim',
                       model='vit_bass')

    def test_encoder_in_the_format_of_the_hub(self, tmp_path):
        encoder = timm.create_model('test_vit', num_classes=0, img_size=32)
        timm.models.save_for_hf(encoder, tmp_path / 'a', model_args=dict(img_size=32))
        recipe = convert(tmp_path / 'a', tmp_path / 'b', to='huggingface-vitmae').recipe
        assert recipe.model_kwargs['num_heads'] == encoder.blocks[0].attn.num_heads == 2
        convert(tmp_path / 'b', tmp_path / 'c.safetensors', to='encoder')
        assert_equal(load_file(tmp_path / 'c.safetensors'), encoder.state_dict())

    def test_half_precision_stays(self, facebook_file, tmp_path):
        tensors = {name: tensor.bfloat16() for name, tensor in facebook_mae().items()}
        torch.save(dict(model=tensors), facebook_file)
        convert(facebook_file, tmp_path / 'b', to='huggingface-vitmae', **HEADS)
        convert(tmp_path / 'b', tmp_path / 'c.pth', to='facebook-mae')
        assert_equal(torch.load(tmp_path / 'c.pth', weights_only=True)['model'], tensors)


class TestRefusals:
    def test_every_unknown_and_missing_tensor_is_listed(self, facebook_file, tmp_path):
        tensors = facebook_mae()
        del tensors['decoder_blocks.0.mlp.fc1.bias'], tensors['cls_token']
        tensors['head.weight'] = tensors['blocks.0.ls1.gamma'] = torch.zeros(48)
        tensors['norm.bias'] = torch.zeros(47)
        torch.save(dict(model=tensors), facebook_file)
        assert_refuses(
            'unknown: head.weight, blocks.0.ls1.gamma; missing: cls_token, decoder_blocks.0.mlp.fc1.bias; of another '
            r'shape: norm.bias \(47, not 48\)', facebook_file, tmp_path / 'b.safetensors', **HEADS)

    @pytest.mark.parametrize('name', ['patch_embed.proj.weight', 'pos_embed', 'blocks.0.mlp.fc1.weight', 'mask_token'])
    def test_missing_tensor_that_tells_the_size(self, name, facebook_file, tmp_path):
        tensors = facebook_mae()
        del tensors[name]
        torch.save(dict(model=tensors), facebook_file)
        assert_refuses(f'facebook-mae: missing: {name}', facebook_file, tmp_path / 'b.safetensors', **HEADS)

    def test_missing_key_of_attention(self, facebook_file, tmp_path):
        convert(facebook_file, tmp_path / 'b', to='huggingface-vitmae', **HEADS)
        tensors = load_file(tmp_path / 'b' / 'model.safetensors')
        missing = 'vit.encoder.layer.1.attention.attention.key.weight'
        del tensors[missing]
        save_file(tensors, tmp_path / 'b' / 'model.safetensors')
        assert_refuses(f': missing: {missing}.$', tmp_path / 'b', tmp_path / 'c.safetensors')

    def test_several_formats_and_none(self, facebook_file, tmp_path):
        tensors = {**facebook_mae(), **microsoft_swin()}
        torch.save(dict(model=tensors), facebook_file)
        assert_refuses('tensor names of several formats: facebook-mae, microsoft-simmim', facebook_file,
                       tmp_path / 'b.safetensors')
        torch.save(dict(conv1=torch.zeros(1)), facebook_file)
        assert_refuses(r'names of an unknown format \(conv1, ...\); known formats are facebook-mae, ', facebook_file,
                       tmp_path / 'b.safetensors')
        torch.save(dict(conv1=torch.zeros(1), epoch=1), facebook_file)
        assert_refuses('values that are not tensors: epoch', facebook_file, tmp_path / 'b.safetensors')

    def test_number_of_heads_is_not_guessed(self, facebook_file, tmp_path):
        dest = tmp_path / 'b.safetensors'
        assert_refuses('heads of the encoder of width 48: .* --model-kwargs num_heads=NUMBER', facebook_file, dest)
        assert_refuses('heads of the decoder of width 32: .* --mim-kwargs decoder_heads=NUMBER', facebook_file, dest,
                       model_kwargs=dict(num_heads=4))

    @pytest.mark.parametrize('kwargs, to, message', [
        (dict(reg_tokens=2), 'facebook-mae', 'facebook-mae cannot hold this model: unknown: backbone.reg_token'),
        (dict(reg_tokens=2), 'huggingface-vitmae', 'unknown: backbone.reg_token'),
        (dict(class_token=False, global_pool='avg', fc_norm=False), 'facebook-mae', 'missing: backbone.cls_token'),
        (dict(act_layer='quick_gelu'), 'facebook-mae', 'cannot hold this model: blocks.0.mlp.act is QuickGELU'),
        (dict(patch_size=(8, 16)), 'facebook-mae', 'images and patches must be square'),
        (dict(qk_norm=True), 'huggingface-vitmae', 'unknown: .*backbone.blocks.1.attn.q_norm.weight'),
        (dict(), 'facebook-ijepa', 'facebook-ijepa holds ijepa, not mae'),
        (dict(), 'target-encoder', 'A checkpoint of mae contains no target-encoder'),
    ], ids=str)
    def test_model_that_a_format_cannot_hold(self, kwargs, to, message, tmp_path):
        method = mae(**kwargs)
        save_file(method.state_dict(), tmp_path / 'a.safetensors')
        dest = tmp_path / ('b.safetensors' if to == 'target-encoder' else 'b' if 'hugging' in to else 'b.pth')
        assert_refuses(message, tmp_path / 'a.safetensors', dest, to, model='vit_base_patch16_224', img_size=(32, 32),
                       model_kwargs={**VIT, **kwargs}, options=DECODER)
        if 'act_layer' not in kwargs:  # tensors show the rest
            assert_refuses('.', tmp_path / 'a.safetensors', dest, to, img_size=(32, 32), **HEADS)
        else:
            kwargs = dict(model_kwargs={**HEADS['model_kwargs'], **kwargs}, options=HEADS['options'])
            assert_refuses(message, tmp_path / 'a.safetensors', dest, to, **kwargs)


class TestFiles:
    def test_pickle_that_runs_code_is_refused(self, tmp_path):
        class Malicious:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / 'ran'),)

        for legacy in (False, True):
            torch.save(dict(model=facebook_mae(), extra=Malicious()), tmp_path / 'a.pth',
                       _use_new_zipfile_serialization=not legacy)
            assert_refuses("a.pth' was not loaded: it needs (posix|nt|os).mkdir, but only tensors and plain values",
                           tmp_path / 'a.pth', tmp_path / 'b.safetensors', **HEADS)
        assert not (tmp_path / 'ran').exists()

    def test_broken_and_absent_files(self, facebook_file, tmp_path):
        dest = tmp_path / 'b.safetensors'
        whole = facebook_file.read_bytes()
        for content in (b'', b'text', whole[:len(whole) // 2]):
            facebook_file.write_bytes(content)
            assert_refuses("a.pth' (is not a complete checkpoint|was not loaded)", facebook_file, dest)
        facebook_file.write_bytes(whole)
        flip_a_bit(facebook_file)
        assert_refuses("a.pth' is damaged: Bad CRC-32", facebook_file, dest)
        (tmp_path / 'c.safetensors').write_bytes(b'1234')
        assert_refuses('is not a complete safetensors file', tmp_path / 'c.safetensors', dest)
        assert_refuses("There is no file '.*absent.pth'", tmp_path / 'absent.pth', dest)
        assert_refuses('has no model.safetensors and no pytorch_model.bin', tmp_path, dest)

    def test_nothing_is_replaced_without_force(self, facebook_file, tmp_path):
        for name, to in (('b.safetensors', 'mim'), ('b.pth', 'task'), ('b', 'huggingface-vitmae')):
            path = tmp_path / name
            convert(facebook_file, path, to=to, **HEADS)
            weights = path / 'model.safetensors' if path.is_dir() else path
            assert weights.stat().st_mode == facebook_file.stat().st_mode
            file = path / 'config.json' if path.is_dir() else path
            file.write_text('precious')
            assert_refuses("exists, --force replaces it", facebook_file, path, to, **HEADS)
            assert file.read_text() == 'precious'
            convert(facebook_file, path, to=to, force=True, **HEADS)
            assert file.read_bytes() != b'precious'

    @pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a device that is full')
    def test_full_disk_leaves_nothing_behind(self, facebook_file, tmp_path):
        for existing in (False, True):
            if existing:
                (tmp_path / 'b.pth').write_text('precious')
            os.symlink('/dev/full', tmp_path / '.b.pth.partial')
            with pytest.raises(ConversionError, match="b.pth' cannot be written, is the disk full") as error:
                convert(facebook_file, tmp_path / 'b.pth', to='task', force=True, **HEADS)
            assert '\n' not in str(error.value)
            assert set(os.listdir(tmp_path)) == {'a.pth', *(['b.pth'] if existing else [])}
        assert (tmp_path / 'b.pth').read_text() == 'precious'

    def test_interrupted_write_leaves_nothing_behind(self, facebook_file, tmp_path, monkeypatch):
        def interrupted(content, path):
            path.write_text('half')
            raise KeyboardInterrupt

        (tmp_path / 'b.pth').write_text('precious')
        monkeypatch.setattr(torch, 'save', interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(facebook_file, tmp_path / 'b.pth', to='task', force=True, **HEADS)
        assert set(os.listdir(tmp_path)) == {'a.pth', 'b.pth'}
        assert (tmp_path / 'b.pth').read_text() == 'precious'

    @pytest.mark.parametrize('to, name, message', [
        ('mim', 'b.pth', 'the name of a mim file must end with .safetensors'),
        ('facebook-mae', 'b.safetensors', 'must end with .pth or '),
        ('huggingface-vitmae', 'b.safetensors', 'needs a folder, for config.json and model.safetensors'),
        ('nonsense', 'b', "There is no format 'nonsense'; the formats are facebook-mae"),
    ])
    def test_name_of_the_destination(self, to, name, message, facebook_file, tmp_path):
        assert_refuses(message, facebook_file, tmp_path / name, to, **HEADS)


class TestCommand:
    def test_conversion(self, facebook_file, tmp_path, capsys, monkeypatch):
        dest = tmp_path / 'b.safetensors'
        flags = ['--model-kwargs', 'num_heads=4', '--mim-kwargs', 'decoder_heads=2', '--img-size', '32']
        monkeypatch.delitem(sys.modules, 'timm.mim.convert.__main__')
        monkeypatch.setattr(sys, 'argv', ['convert', str(facebook_file), str(dest), *flags])
        with pytest.raises(SystemExit) as end:
            runpy.run_module('timm.mim.convert', run_name='__main__')
        assert end.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f'facebook-mae -> mim: {dest}'
        namespace = {}
        code = '\n'.join(line.strip() for line in lines[1:])
        exec(f'import timm.mim, safetensors.torch\n{code}', namespace)
        assert torch.equal(namespace['method'].backbone.cls_token, facebook_mae()['cls_token'])

        assert main([str(dest), str(tmp_path / 'c.safetensors'), '--to', 'encoder']) == 0
        line = capsys.readouterr().out.splitlines()[1]
        exec(f'import timm\n{line.strip()}', namespace)
        assert torch.equal(namespace['encoder'].norm.bias, facebook_mae()['norm.bias'])

    def test_mistake_is_one_line_and_exit_code_2(self, facebook_file, tmp_path, capsys):
        for arguments in (
                [tmp_path / 'absent', tmp_path / 'b.safetensors'],
                [facebook_file, tmp_path / 'b.safetensors', '--img-size', '1', '2', '3'],
        ):
            assert main([str(argument) for argument in arguments]) == 2
            captured = capsys.readouterr()
            assert captured.err.startswith('error: ') and captured.err.count('\n') == 1 and not captured.out

    def test_our_own_format_has_no_default(self, tmp_path):
        save_file(mae().state_dict(), tmp_path / 'a.safetensors')
        assert_refuses('mim is our own format: give the format to write, --to facebook-mae or ',
                       tmp_path / 'a.safetensors', tmp_path / 'b.safetensors')

    def test_every_format_is_documented(self):
        documented = [line.split()[0] for line in convert_documentation().splitlines() if line.startswith('    ')]
        assert set(FORMATS) <= set(documented)


def convert_documentation():
    import timm.mim.convert
    return timm.mim.convert.__doc__
