"""Every method on every model that it serves, at a size as small as the model takes."""
import math
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn as nn

import probe
from cases import Case, all_cases

from timm.mim import create_mim, get_mim
from timm.mim.backbone import patch_stride
from timm.models import get_model_class, get_pretrained_cfg

Size = Tuple[int, int]

# methods with decoders as small as they can be
OPTIONS = {
    'simmim': {},
    'mae': dict(decoder_dim=16, decoder_depth=1, decoder_heads=2),
    'ijepa': dict(predictor_dim=16, predictor_depth=1, predictor_heads=2, num_targets=2),
    'data2vec': dict(mask_ratio=0.5, clone_batch=1, decoder_dim=16, decoder_layers=1),
}
# Softmax does not see a key bias, which moves all scores of a query alike, nor the bias of a single key, which is what
# the last stage of LeViT has in a small image. A batch norm removes a bias in front of it (ReXNet, SHViT).
MAY_BE_ZERO = 'k_bias', 'attention_biases', 'se.fc1.bias', 'mixer.m.pre_norm.bias'
LARGEST = 100e6  # parameters of the models that are trained with real numbers, the giants have shapes alone
SIDES = 64, 56, 128, 112, 192, 224, 256  # of small images, for patches of 16 and 14 pixels

# configurations of classes that a method serves which it cannot, each with what the error says
REFUSED_CASES = {
    'vit-patch-drop': 'drops random patches itself',
    'eva-rope-patch-drop': 'drops random patches itself',
    'eva-mixed-rope-patch-drop': 'drops random patches itself',
    'eva-dinov3-patch-drop': 'drops random patches itself',
    'naflex-patch-drop': 'drops random patches itself',
    'naflex-axial-patch-drop': 'drops random patches itself',
    'naflex-mixed-patch-drop': 'drops random patches itself',
    'fastvit-list-of-features': 'list of feature maps',
    'coat-maps': 'several feature maps',
    'coat-parallel-maps': 'several feature maps',
    'convit-all-local': '16 tokens do not make a 4 x 4 map with 1 prefix tokens',
    'hrnet-branches': 'list of 4 tensors',
    'levit-non-square': 'multiple of 64',
    'deepseek-classifier-align-padded': 'multiple of',
    'gemma4-classifier-soft': 'multiple of 32|pools neighbours on the grid',
}
# models of data2vec that encode all tokens, and are measured in the default run
_ALL_TOKENS = 'swin-shifted', 'qwen3-classifier-merge'
REFUSED_BY_DATA2VEC = {
    **{name: 'masks all 1 units' for name in (
        'levit-linear', 'levit-convolutional', 'csatv2-frequencies', 'shvit-attention')},
    'hiera-one-pooling': 'set drop_tokens=False',
}
REFUSED_WHEN_DROPPING = {
    'hiera-one-pooling': 'does not return one token per visible patch',
}


def branches(method: str, everything: bool = False) -> List[Case]:
    """One small model per class and configuration branch that a method serves; of data2vec fewer without `everything`.

    Cases that differ in how a model is called, and in nothing that a method meets, are left out.
    """
    unsupported_reason = get_mim(method).unsupported_reason
    found = [
        case for case in all_cases()
        if set(case.probe_kwargs) <= {'img_size'} and unsupported_reason(case_class(case)) is None]
    if method != 'data2vec' or everything:
        return found
    # it encodes a model that cannot drop tokens as SimMIM does, which is measured
    drops = [case for case in found if get_mim('mae').unsupported_reason(case_class(case)) is None]
    first = {case_class(case): case for case in reversed(drops) if case.name not in REFUSED_CASES}
    return [*first.values(), *(case for case in found if case.name in _ALL_TOKENS)]


_classes: Dict[str, type] = {}


def case_class(case: Case) -> type:
    """Class of the model of a case, found once."""
    if case.name not in _classes:
        _classes[case.name] = _find_class(case)
    return _classes[case.name]


def _find_class(case: Case) -> type:
    if '.' not in case.model:
        return get_model_class(case.model)
    if isinstance(probe.find_class(case.model), type):
        return probe.find_class(case.model)
    with torch.device('meta'):
        return type(probe.build(case.model, case.model_kwargs))


def case_sizes(case: Case) -> List[Size]:
    """The image size of a case, and where a model would pad that, some next to it."""
    own = tuple(case.probe_kwargs['img_size'])
    return [own, *(tuple(-(-side // step) * step for side in own) for step in (32, 28, 64))]


def registered_sizes(name: str) -> List[Size]:
    """Small image sizes, the own one of a registered model, and those next to it that are whole patches."""
    own = get_pretrained_cfg(name).input_size[1:]
    small = [(side, side) for side in SIDES]
    return [*small, own, *(tuple(side // step * step for side in own) for step in (14, 32, 64))]


def create(method: str, name: str, model_kwargs: Dict[str, Any], sizes: Sequence[Size], registered: bool) -> nn.Module:
    """A method on a model, for the first image size that it takes."""
    errors = []
    for size in dict.fromkeys(sizes):
        try:
            model = probe.build(name, model_kwargs, size if registered else None)
            options = dict(OPTIONS[method])
            if method == 'simmim':
                options['mask_unit'] = patch_stride(model, size)
            return create_mim(method, model, img_size=size, **options)
        except (AssertionError, RuntimeError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def assert_learns(method: nn.Module, steps: int = 5) -> None:
    """The loss of a fixed batch falls within a few steps, with all that is random the same in each of them.

    Each trainable parameter gets a gradient in each step, and in some step one that is not all zeros. Training ends
    when both are seen.
    """
    never_moved = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    images = torch.randn(2, method.in_chans, *method.img_size, device=device)
    noise = torch.rand(method.noise_shape(2), device=device)
    method.train()

    def moved() -> set:
        return {name for name, p in method.named_parameters() if p.requires_grad and p.grad.any()}

    def all_moved() -> bool:
        return all(name.endswith(MAY_BE_ZERO) for name in never_moved)

    losses = []
    for step in range(steps):
        torch.manual_seed(0)
        loss = method(images, noise=noise).loss
        losses.append(loss.item())
        if min(losses) < losses[0] and all_moved():
            return
        optimizer.zero_grad()
        loss.backward()
        assert without_gradient(method) == []
        never_moved -= moved()
        optimizer.step()
        if hasattr(method, 'update_target'):
            method.update_target(step / steps)
    assert math.isfinite(losses[0]) and min(losses) < losses[0]
    for seed in range(1, 16):  # stochastic depth and dropout left out the same blocks in each step so far
        if all_moved():
            return
        torch.manual_seed(seed)
        optimizer.zero_grad()
        method(images, noise=noise).loss.backward()
        never_moved -= moved()
    assert all_moved(), never_moved


def without_gradient(method: nn.Module) -> List[str]:
    return [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
