import copy

import pytest
import torch
import torch.nn as nn

import timm
from timm.mim import MIMUnsupportedError, create_mim, list_mim_models
from timm.models import VisionTransformer, _registry, build_model_with_cfg, has_embed_stages, register_model
from timm.models._model_class import get_model_class

TINY = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=3)


@pytest.mark.parametrize('name', [
    # modules of two classes
    'deepseek_vit_412m', 'deepseek_vit_412m_enc', 'deit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224',
    'efficientvim_m1', 'efficientvim_m1_dist', 'efficientvit_b0', 'efficientvit_l1', 'gemma4_vit_167m',
    'gemma4_vit_167m_enc', 'levit_128', 'levit_512', 'mobilenetv5_300m', 'mobilenetv5_300m_enc', 'qwen3_vit_88m',
    'qwen3_vit_88m_enc',
    # entrypoints that do something of their own
    'eva02_tiny_patch14_224', 'hrnet_w18_small', 'inception_v3', 'mobilenetv3_small_050', 'naflexvit_base_patch16_gap',
    'swin_tiny_patch4_window7_224', 'test_vit', 'vit_tiny_r_s16_p8_224', 'vit_base_mci_224',
])
def test_class_is_that_of_the_built_model(name):
    with torch.device('meta'):
        assert get_model_class(name) is type(timm.create_model(name))


def test_nothing_is_built(monkeypatch):
    built = set()
    initialise = nn.Module.__init__

    def record(self, *args, **kwargs):
        built.add(type(self))
        initialise(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, '__init__', record)
    get_model_class.cache_clear()
    with_parts = []
    for name in timm.list_models():
        built.clear()
        model_cls = get_model_class(name)
        assert issubclass(model_cls, nn.Module) and model_cls not in built
        with_parts += [name] if built else []
    # entrypoints of hybrids make the stem of their model before they call the builder
    assert all(name.startswith('vit') for name in with_parts) and len(with_parts) < 40


def test_pretrained_tag_is_no_matter():
    assert get_model_class('vit_tiny_patch16_224.augreg_in21k') is timm.models.VisionTransformer


@pytest.mark.parametrize('takes_kwargs', [True, False])
def test_entrypoint_that_does_not_use_the_builder(monkeypatch, takes_kwargs):
    class Own(nn.Linear):
        pass

    def own_model(pretrained=False):
        return Own(2, 2)

    def own_model_with_kwargs(pretrained=False, **kwargs):
        return Own(2, 2)

    monkeypatch.setitem(
        _registry._model_entrypoints, 'own_model', own_model_with_kwargs if takes_kwargs else own_model)
    get_model_class.cache_clear()
    assert get_model_class('own_model') is Own
    get_model_class.cache_clear()


@pytest.fixture
def registry(monkeypatch):
    """The registry, as it was before afterwards."""
    for name in ('_model_entrypoints', '_model_to_module', '_module_to_models'):
        monkeypatch.setattr(_registry, name, copy.deepcopy(getattr(_registry, name)))
    get_model_class.cache_clear()
    yield
    get_model_class.cache_clear()


@torch.no_grad()
def test_model_of_a_user(registry):
    """On a class that is served it is served too, unless it changes the features alone."""
    class Doubled(VisionTransformer):
        def forward_features(self, x, attn_mask=None, is_causal=False):
            return super().forward_features(x, attn_mask, is_causal) * 2

    def of_a_user(pretrained=False, **kwargs):
        return build_model_with_cfg(VisionTransformer, 'of_a_user', pretrained, **{**TINY, **kwargs})

    def doubled_of_a_user(pretrained=False, **kwargs):
        return build_model_with_cfg(Doubled, 'doubled_of_a_user', pretrained, **{**TINY, **kwargs})

    for entrypoint in (of_a_user, doubled_of_a_user):
        register_model(entrypoint)
    assert has_embed_stages('of_a_user') and not has_embed_stages('doubled_of_a_user')
    assert 'of_a_user' in list_mim_models('mae') and 'doubled_of_a_user' not in list_mim_models('mae')

    model, image = timm.create_model('of_a_user', num_classes=0).eval(), torch.randn(2, 3, 32, 48)
    assert torch.equal(model.forward_stages(model.embed(image)), model.forward_features(image))
    with pytest.raises(MIMUnsupportedError, match='forward_stages'):
        create_mim('mae', 'doubled_of_a_user')


def test_unknown_name():
    with pytest.raises(ValueError, match=r'^Unknown model vit_huge; timm.list_models\(\) lists the available names.$'):
        get_model_class('vit_huge')
