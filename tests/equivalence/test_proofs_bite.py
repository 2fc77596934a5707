"""The proofs fail where the fork is wrong: each mutation of a woven method is seen by both."""
import inspect
import textwrap

import pytest
import torch

import probe
from cases import all_cases
from compare import differing, first_difference

MUTATIONS = {
    'blocks reversed': (
        'vit-class-token', 'forward_stages', 'x = self.blocks(x)', 'x = nn.Sequential(*reversed(self.blocks))(x)'),
    'blocks called, their result not used': (
        'vit-class-token', 'forward_stages', 'x = self.blocks(x)', 'self.blocks(x)'),
    'rope of layer 0 for all': (
        'eva-mixed-rope', 'forward_stages', 'rope=rot_pos_embed[i]', 'rope=rot_pos_embed[0]'),
    'rope not passed': (
        'eva-rope', 'embed_positions', 'RopeTokens(x, rot_pos_embed)', 'RopeTokens(x, None)'),
    'norm dropped': (
        'swin-shifted', 'forward_stages', 'x = self.norm(x)', 'pass'),
    'positions added twice': (
        'vit-class-token', 'embed_positions', 'x = self._pos_embed(x)', 'x = self._pos_embed(x) + self.pos_embed'),
    'patch drop forgotten': (
        'vit-patch-drop', 'embed_positions', 'x = self.patch_drop(x)', 'pass'),
    'cut before the pool, which is lost': (
        'vgg-first-pool', 'embed_patches', 'i <= self.feature_ends[0] + 1', 'i <= self.feature_ends[0]'),
    'pool on both sides of the cut': (
        'densenet-stem', 'forward_stages', 'i > self.feature_ends[0] + 1', 'i > self.feature_ends[0]'),
    'pool of ResNet on both sides of the cut': (
        'resnet-pooled-stem', 'forward_stages', 'x = self.layer1(x)', 'x = self.layer1(self.maxpool(x))'),
    'norm of the stem dropped': (
        'efficientnet-stem', 'embed_patches', 'x = self.bn1(x)', 'pass'),
    'a level lost at the cut': (
        'dla-basic', 'embed_patches', 'x = self.level1(x)', 'pass'),
    'last norm of a convolutional model dropped': (
        'starnet-stem', 'forward_stages', 'x = self.norm(x)', 'pass'),
    'attention mask lost': (
        'vit-attention-mask', 'forward_stages', 'attn_mask=attn_mask', 'attn_mask=None'),
}


def mutate(monkeypatch, case, method, old, new):
    """Replace text in the source of a method of the model's class."""
    with torch.device('meta'):
        model_class = type(probe.build(case.model, case.model_kwargs))
    source = textwrap.dedent(inspect.getsource(getattr(model_class, method)))
    assert old in source
    namespace = {}
    exec(source.replace(old, new), vars(inspect.getmodule(model_class)), namespace)
    monkeypatch.setattr(model_class, method, namespace[method])


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_values_differ(stock, monkeypatch, mutation):
    case_name, method, old, new = MUTATIONS[mutation]
    case = next(case for case in all_cases() if case.name == case_name)
    arguments = dict(name=case.model, model_kwargs=case.model_kwargs, **case.probe_kwargs)
    stock.ask('values', **arguments)
    expected = stock.answer()
    assert differing(probe.values(**arguments), expected) == []
    mutate(monkeypatch, case, method, old, new)
    assert any(name.startswith('train features') for name in differing(probe.values(**arguments), expected))


# the recorder makes a plain forward pass, without a mask to lose
@pytest.mark.parametrize('mutation', [mutation for mutation in MUTATIONS if mutation != 'attention mask lost'])
def test_operations_differ(stock, monkeypatch, mutation):
    case_name, method, old, new = MUTATIONS[mutation]
    case = next(case for case in all_cases() if case.name == case_name)
    arguments = dict(
        name=case.model, model_kwargs=case.model_kwargs, img_size=case.probe_kwargs['img_size'], train=True)
    stock.ask('operations', **arguments)
    expected = stock.answer()
    assert first_difference(probe.operations(**arguments), expected) is None
    mutate(monkeypatch, case, method, old, new)
    assert first_difference(probe.operations(**arguments), expected)
