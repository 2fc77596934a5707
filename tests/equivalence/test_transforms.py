"""A model that is scripted, FX-traced, compiled, pruned, resized or checkpointed works as stock timm's does."""
from typing import Dict, List

import pytest
import torch

import probe
import transforms
from cases import Case, all_cases
from test_values import assert_equal_values


def class_path(case: Case) -> str:
    return case.model_kwargs.get('class_path', case.model)


def first_of_each_class() -> List[Case]:
    first: Dict[str, Case] = {}
    for case in all_cases():
        first.setdefault(class_path(case), case)
    return list(first.values())


# of classes whose other branches have other types or other control flow
BRANCHES = [
    'vit-registers', 'vit-dynamic-size', 'eva-rope', 'eva-mixed-rope', 'eva-dinov3', 'swin-any-size', 'beit-shared',
    'relpos-bias-shared', 'sam-relative', 'naflex-factorized', 'naflex-axial', 'naflex-mixed', 'gemma4-classifier-soft',
    'qwen3-classifier-merge', 'deepseek-classifier-align-padded', 'volo-no-class-attention', 'tnt-legacy',
    'coat-parallel-average', 'hieradet-patches', 'hiera-one-pooling', 'mvit-class-token-absolute',
    'levit-convolutional', 'visformer-no-stem', 'pit-distilled', 'byobnet-conv-mobilevit', 'mobilenetv5-fused-stem',
    'mobilenetv5-one-scale', 'metaformer-pooling',
]
FIRST = first_of_each_class()
REPRESENTATIVES = FIRST + [case for case in all_cases() if case.name in BRANCHES]

# what stock timm cannot do either, as the test checks
IMPOSSIBLE = {
    'script': [
        'hiera-absolute', 'hiera-one-pooling',  # a starred shape
        'sam-absolute', 'beit-shared',  # no relative positions where the attention expects some
        # a batch may be a dict
        'naflex-learned', 'naflex-factorized', 'naflex-axial', 'naflex-mixed',
        'gemma4-encoder-soft', 'gemma4-classifier-tokens', 'gemma4-classifier-soft',
        'hrnet-classifier', 'selecsls-stem',  # lists of maps in a Sequential
    ],
    'fx': [
        # control flow on the input, its mask or its grid
        'hiera-absolute', 'hiera-one-pooling', 'swin-any-size', 'naflex-axial', 'naflex-mixed',
        'gemma4-encoder-soft', 'gemma4-classifier-tokens', 'gemma4-classifier-soft',
    ],
    'trace': [],
    'compile': ['sequencer-stem'],  # an LSTM
}
# case, and another size of its images
RESIZED = {
    'vit-class-token': [32, 48], 'deit-distilled': [48, 32], 'eva-rope': [32, 48], 'eva-mixed-rope': [48, 32],
    'eva-dinov3': [32, 48], 'swin-shifted': [64, 96], 'swinv2-shifted': [64, 96], 'swinv2-cr-shifted': [64, 96],
    'msra-windows': [128, 192], 'maxxvit-windows': [128, 160], 'coatnet-attention': [96, 64], 'beit-relative': [32, 64],
    'relpos-swin-class-token': [48, 64],
}
TRANSFORMED = [
    *((transform, case) for transform in ('script', 'fx') for case in REPRESENTATIVES),
    *((transform, case) for transform in ('trace', 'compile') for case in FIRST),
]


@pytest.mark.parametrize(('transform', 'case'), [
    pytest.param(transform, case, id=f'{transform}-{case.name}') for transform, case in TRANSFORMED])
def test_transformed(stock, transform, case):
    model_kwargs = {key: value for key, value in case.model_kwargs.items() if key != 'class_path'}
    arguments = dict(
        transform=transform, name=class_path(case), model_kwargs=model_kwargs, img_size=case.probe_kwargs['img_size'])
    problem = transforms.problem(**arguments)
    if case.name not in IMPOSSIBLE[transform]:
        assert problem is None
        return
    stock.ask('transforms.problem', **arguments)
    assert problem and stock.answer(), 'not impossible any more'


def changed(case: Case, **change):
    """Arguments for `values` of a model that is changed after it was built."""
    model_kwargs = {**case.model_kwargs, 'class_path': class_path(case), **change}
    return dict(name='builders_plain.headless', model_kwargs=model_kwargs, **case.probe_kwargs)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in FIRST])
def test_pruned(stock, case):
    assert_equal_values(stock, **changed(case, prune=[0]))


@pytest.mark.parametrize('name', RESIZED)
def test_resized(stock, name):
    case, size = next(case for case in all_cases() if case.name == name), RESIZED[name]
    assert_equal_values(stock, **{**changed(case, input_size=size), 'img_size': size})


def test_every_class_that_changes_is_compared():
    """Resized above, checkpointed in a case of its own; which classes can be is upstream's to say."""
    with torch.device('meta'):
        models = {class_path(case): probe.build(case.model, case.model_kwargs) for case in FIRST}
    classes = {path: type(model) for path, model in models.items()}
    resized = {classes[class_path(case)] for case in all_cases() if case.name in RESIZED}
    assert {cls for cls in classes.values() if hasattr(cls, 'set_input_size')} == resized
    checkpointed = {classes[class_path(case)] for case in all_cases() if case.probe_kwargs.get('checkpointing')}
    for model in models.values():
        if type(model) not in checkpointed:
            with pytest.raises(AssertionError, match='not supported'):
                model.set_grad_checkpointing()
