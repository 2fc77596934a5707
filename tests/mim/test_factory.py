import pytest
import torch
import torch.nn as nn

import timm
from timm.mim import MIMOutput, SimMIM, create_mim, factory, get_mim, list_mim_models, list_mims, register_mim
from timm.models import has_embed_stages
from timm.models._model_class import get_model_class
from registry import registered
from tiny_models import build


def test_method_on_a_model():
    backbone = build('vit')
    method = create_mim('simmim', backbone, mask_ratio=0.5, mask_unit=16)
    assert type(method) is SimMIM and method.backbone is backbone
    assert (method.mask_ratio, method.mask_unit) == (0.5, (16, 16))
    assert isinstance(backbone.head, nn.Identity)


def test_method_on_a_name():
    method = create_mim(
        'simmim', 'vit_tiny_patch16_224', img_size=(64, 96), model_kwargs=dict(depth=1, in_chans=4), mask_unit=[32, 16])
    assert method.img_size == (64, 96) and method.in_chans == 4 and method.mask_unit == (32, 16)
    assert method.backbone.num_classes == 0 and len(method.backbone.blocks) == 1


def test_image_size_reaches_a_windowed_model():
    method = create_mim('simmim', 'swin_tiny_patch4_window7_224', img_size=128, model_kwargs=dict(depths=(1, 1, 1, 1)))
    assert method.img_size == (128, 128) and method.encoder_stride == (32, 32)


@pytest.mark.parametrize('call, message', [
    (lambda: create_mim('simim', 'vit_tiny_patch16_224'), "timm.mim has no method 'simim'; did you mean simmim?"),
    (lambda: list_mim_models('simim'), "timm.mim has no method 'simim'; did you mean simmim?"),
    (lambda: create_mim('simmim', 'vit_tiny'),
     "timm has no model 'vit_tiny'; did you mean vit_tiny_patch16_224, vit_tiny_patch16_384, vit_tiny_r_s16_p8_224?"),
    (lambda: create_mim('simmim', 'vit_tiny_patch16_224', ratio=0.5, unit=1),
     'simmim has no option ratio, unit; its options are mask_ratio, mask_unit, masking, target, loss.'),
    (lambda: create_mim('simmim', build('vit'), model_kwargs=dict(depth=1)),
     'model_kwargs (depth) are for a backbone given by name.'),
    (lambda: register_mim('simmim')(nn.Module), 'The name simmim is already registered, for SimMIM.'),
])
def test_mistakes(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_a_method_of_ones_own(monkeypatch):
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))

    @register_mim('nothing')
    class Nothing(nn.Module):
        @staticmethod
        def unsupported_reason(model):
            return None if issubclass(model if isinstance(model, type) else type(model), timm.models.ResNet) else 'no'

        def __init__(self, backbone, img_size=None, power=1):
            super().__init__()
            self.backbone, self.power = backbone, power

        def forward(self, images, mask=None, noise=None, generator=None):
            return MIMOutput(images.sum() * 0, images, images, mask)

    assert list_mims() == ['capi', 'data2vec', 'fcmae', 'ijepa', 'mae', 'nothing', 'simmim', 'spark']
    assert get_mim('nothing') is Nothing
    assert create_mim('nothing', build('vit'), power=2).power == 2
    assert set(list_mim_models('nothing', 'resnet*')) == set(timm.list_models('resnet*', module='resnet'))


def test_listed_models_are_those_with_the_protocol():
    names = list_mim_models('simmim')
    assert len(names) == len(set(names)) >= 680
    assert {'vit_base_patch16_224', 'deit_tiny_distilled_patch16_224', 'swin_base_patch4_window7_224',
            'eva02_tiny_patch14_224', 'vit_small_patch16_dinov3'} <= set(names)
    assert {'resnet50', 'convnext_tiny'} <= set(names) and 'vit_base_patch32_384_missing' not in names
    assert not {  # their stems pad nothing
        'inception_v3', 'inception_v4', 'inception_resnet_v2', 'legacy_xception', 'nasnetalarge', 'pnasnet5large',
    } & set(names)
    assert all(has_embed_stages(get_model_class(name)) for name in names[::20])
    assert set(list_mim_models('simmim', 'swin_*')) == {name for name in names if name.startswith('swin_')}
    # of these all features are class tokens, or two grids
    assert not [name for name in names if name.startswith(('crossvit', 'pit_'))]


@pytest.mark.parametrize('method, count', [('mae', 293), ('ijepa', 285)])
def test_listed_models_that_drop_tokens(method, count):
    names = set(list_mim_models(method))
    assert len(names) >= count
    assert {'vit_base_patch16_224', 'deit_base_distilled_patch16_224', 'eva02_tiny_patch14_224',
            'vit_small_patch16_dinov3', 'naflexvit_base_patch16_gap', 'hiera_tiny_224'} <= names
    assert not [name for name in names if name.startswith(('swin', 'beit_', 'vit_relpos', 'resnet'))]
    classes = {get_model_class(name).__name__ for name in names}
    assert {'VisionTransformer', 'VisionTransformerDistilled', 'Eva', 'NaFlexVit', 'Hiera'} <= classes
    for cls in ('VisionTransformer', 'VisionTransformerDistilled', 'Eva', 'NaFlexVit', 'Hiera'):
        every = [name for name in timm.list_models() if get_model_class(name).__name__ == cls]
        assert set(every) <= names


@pytest.mark.parametrize('method, names', [
    ('simmim', [
        'coat_tiny', 'coat_lite_tiny', 'vit_small_patch14_dinov2', 'convmixer_768_32', 'sequencer2d_s',
        'efficientvit_m2',
    ]),
    ('mae', ['deepseek_vit_412m_enc', 'gemma4_vit_167m', 'vit_small_r26_s32_224']),
    ('ijepa', ['qwen3_vit_88m_enc', 'gemma4_vit_167m_enc', 'vit_base_patch16_plus_240']),
])
def test_listed_models_can_be_created(method, names, request):
    """With defaults: one of each class and some that no tiny model stands for, all with --all-models, on meta."""
    listed = list_mim_models(method)
    assert set(names) <= set(listed)
    if not request.config.getoption('--all-models', False):
        parameters = {entry.name: entry.parameters for entry in registered()}
        smallest = {}
        for name in sorted(listed, key=parameters.get):
            smallest.setdefault(get_model_class(name), name)
        listed = {*names, *smallest.values()}
    refused = {}
    for name in listed:
        try:
            with torch.device('meta'):
                create_mim(method, name)
        except ValueError as error:
            refused[name] = str(error)
    assert refused == {}


@pytest.mark.parametrize('name, img_size, mask_unit', [
    ('vit_small_patch14_dinov2', 518, 14),  # 37 x 37 patches, and 37 is a prime
    ('convmixer_768_32', 224, 28),
    ('sequencer2d_s', 224, 28),
    ('efficientvit_m2', 192, 64),  # would pad its own 224
    ('vit_tiny_patch16_224', 224, 32),
])
def test_defaults(name, img_size, mask_unit):
    with torch.device('meta'):
        method = create_mim('simmim', name)
    assert method.img_size == (img_size, img_size) and method.mask_unit == (mask_unit, mask_unit)
