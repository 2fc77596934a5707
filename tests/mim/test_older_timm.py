"""What stands in for functions of timm 1.0.31 gives what they give."""
import argparse
import importlib.util

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
