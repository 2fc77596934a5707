"""What stands in for functions of timm 1.0.31 gives what they give."""
import argparse
import importlib.util
import json

import pytest
import torch

import timm
import timm.models
from timm.mim import older_timm


@pytest.fixture
def stand_ins(monkeypatch):
    """The module as it is with a timm that lacks the functions."""
    for name in ('get_model_input_config', 'resolve_model_input_args'):
        monkeypatch.delattr(timm.models, name)
    spec = importlib.util.spec_from_file_location('timm.mim.with_older_timm', older_timm.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.undo()
    assert module.get_model_input_config is not older_timm.get_model_input_config
    return module


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224', 'eva02_tiny_patch14_224', 'beit_base_patch16_224',
    'pvt_v2_b0', 'convnext_atto', 'mobilevit_xxs', 'mixer_s32_224'])
@pytest.mark.parametrize('img_size, in_chans', [(None, 3), ((64, 96), 1)])
def test_models_are_built_alike(stand_ins, name, img_size, in_chans):
    inputs = []
    for module in (older_timm, stand_ins):
        arguments = module.resolve_model_input_args(
            name, dict(img_size=img_size), in_chans=in_chans if in_chans != 3 else None, num_classes=0)
        with torch.device('meta'):
            model = timm.create_model(**arguments)
        inputs.append((arguments.get('img_size'), tuple(module.get_model_input_config(model)['input_size'])))
    assert inputs[0] == inputs[1]


def test_unknown_models_are_unknown(stand_ins):
    for module in (older_timm, stand_ins):
        with pytest.raises(RuntimeError):
            module.resolve_model_input_args('vit_small')


def test_checkpoints_are_read_alike(stand_ins, tmp_path):
    checkpoint = dict(state_dict=dict(weight=torch.arange(3.)), args=argparse.Namespace(model='vit'), epoch=1)
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    torch.save(dict(state_dict=test_checkpoints_are_read_alike), tmp_path / 'code.pth.tar')
    for module in (older_timm, stand_ins):
        loaded = module.load_checkpoint_metadata(tmp_path / 'last.pth.tar')
        assert torch.equal(loaded.pop('state_dict')['weight'], torch.arange(3.))
        assert loaded == dict(args=argparse.Namespace(model='vit'), epoch=1)
        with pytest.raises(Exception, match='(?i)weights.only'):
            module.load_checkpoint_metadata(tmp_path / 'code.pth.tar')


def test_configurations_tell_alike(stand_ins, tmp_path):
    preprocessing = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.7, interpolation='bilinear')
    written = []
    for module in (older_timm, stand_ins):
        model = timm.create_model('test_vit', num_classes=0)
        module.save_config_for_hf(
            model, str(tmp_path / 'config.json'), model_config=dict(pretrained_cfg=dict(tag='mae')),
            data_config=preprocessing)
        config = json.loads((tmp_path / 'config.json').read_text())
        told = {name: config['pretrained_cfg'][name] for name in ('tag', 'input_size', *preprocessing)}
        written.append((config['architecture'], config['num_classes'], told))
    assert written[0] == written[1] and written[0][2]['mean'] == [0.1, 0.2, 0.3]
