"""What a model computes, as text that two processes can compare: one with stock timm, one with the fork.

Runs in both, so it imports nothing but torch, timm and `recorder`, and uses nothing that only the fork has, `compose`
and `is_served` aside.
"""
import contextlib
import functools
import gc
import hashlib
import importlib
import inspect
import zlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

import timm

from recorder import INITIALIZERS, MetaDevice, OperationRecorder, tensors


def find_class(path: str) -> type:
    module_name, class_name = path.rsplit('.', 1)
    return getattr(importlib.import_module(module_name), class_name)


def build(name: str, model_kwargs: Dict[str, Any], img_size: Optional[List[int]] = None) -> nn.Module:
    """A registered model, or a class such as 'timm.models.eva.Eva' for what no registered model has.

    A registered model is built for the image size where it is built for one at all.
    """
    model_kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in model_kwargs.items()}
    if '.' in name:
        return find_class(name)(**model_kwargs)
    if img_size is None:
        return timm.create_model(name, **model_kwargs)
    from timm.models import resolve_model_input_args  # upstream has it from 1.0.31 on
    return timm.create_model(**resolve_model_input_args(name, {'img_size': tuple(img_size)}, **model_kwargs))


def is_served(name: str) -> bool:
    """Whether a model is registered whose class has embed and forward_stages. For the fork only."""
    return timm.is_model(name) and timm.models.has_embed_stages(name)


def input_size(model: nn.Module, img_size: Optional[List[int]] = None, in_chans: int = 3) -> Tuple[int, int, int]:
    """(C, H, W) of the image that a model is asked for."""
    if img_size is None:
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        img_size = cfg.get('input_size', (3, 224, 224))[1:]
    return (in_chans, *img_size)


def compose(model: nn.Module) -> None:
    """Let the fork's forward run embed and forward_stages, called from outside as a user calls them."""
    embed_arguments = inspect.signature(model.embed).parameters

    def forward_features(x, **kwargs):
        for_embed = {k: kwargs.pop(k) for k in list(kwargs) if k in embed_arguments}
        return model.forward_stages(model.embed(x, **for_embed), **kwargs)

    model.forward_features = forward_features


def operations(
        name: str,
        model_kwargs: Optional[Dict[str, Any]] = None,
        train: bool = False,
        composed: bool = False,
        img_size: Optional[List[int]] = None,
) -> List[str]:
    """Every initialisation of a model and every operation of one forward pass, on the meta device.

    No memory, no numbers, any size of model.
    """
    model_kwargs = dict(model_kwargs or {})
    meta_device = MetaDevice()
    with meta_device:
        # a fresh model for each trace, some cache on the first call
        model = build(name, model_kwargs, img_size).train(train)
    with torch.device('meta'), torch.no_grad():
        image = torch.empty(2, *input_size(model, img_size, model_kwargs.get('in_chans', 3)))
        if composed:
            compose(model)
        with OperationRecorder(model, {'image': image}) as recorder:
            output = model(image)
    origins: List[str] = []
    results = [recorder.describe(t, origins) for _, t in tensors(output)]
    return meta_device.lines + recorder.lines + [f'return {", ".join(results)} of {", ".join(origins)}']


def digest(value: torch.Tensor) -> str:
    """Equal for tensors that are equal bit for bit, in dtype and shape too."""
    shape, content = list(value.shape), value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f'{value.dtype}{shape}:{hashlib.sha256(content.numpy()).hexdigest()[:16]}'


class WithoutInitialization(TorchFunctionMode):
    """Leaves matrices and kernels as they were allocated, for a model that is filled afterwards."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in INITIALIZERS and args and isinstance(args[0], nn.Parameter) and args[0].ndim > 1:
            return args[0]
        return func(*args, **(kwargs or {}))


NUM_NOISE = 1_000_003  # a prime: no two rows of a matrix are equal


@functools.lru_cache(maxsize=1)
def noise_block(seed: int) -> torch.Tensor:
    return torch.randn(NUM_NOISE, generator=torch.Generator().manual_seed(seed))


def noise(seed: int, name: str, like: torch.Tensor) -> torch.Tensor:
    """Normal noise in the shape of a tensor, cut from one block at a place that the name decides: drawing is slow."""
    start = zlib.crc32(name.encode()) % (NUM_NOISE // 2)
    block, end = noise_block(seed), start + like.numel()
    if end > NUM_NOISE:
        block = block.repeat(-(-end // NUM_NOISE))
    return block[start:end].view(like.shape).to(like)


@torch.no_grad()
def randomize(model: nn.Module, seed: int, fill: bool = False) -> None:
    """Move every parameter and statistic off its initial value: zeros and ones would hide what is done with them.

    Args:
        model: Model on the CPU.
        seed: Of the noise.
        fill: Matrices and kernels were not initialised, give them values of the usual scale.
    """
    for name, parameter in model.named_parameters():
        if fill and parameter.ndim > 1:
            parameter.copy_(noise(seed, name, parameter)).mul_(parameter[0].numel() ** -0.5)
        else:
            parameter.add_(noise(seed, name, parameter), alpha=0.02)
    for name, buffer in model.named_buffers():
        if name.endswith('running_mean'):
            buffer.add_(noise(seed, name, buffer), alpha=0.1)
        elif name.endswith('running_var'):
            buffer.add_(noise(seed, name, buffer).abs(), alpha=0.1)


def values(
        name: str,
        model_kwargs: Optional[Dict[str, Any]] = None,
        composed: Sequence[str] = (),
        img_size: Optional[List[int]] = None,
        call: Optional[Dict[str, Any]] = None,
        checkpointing: bool = False,
        device: str = 'cpu',
        dtype: str = 'float32',
        seed: int = 0,
        fill: bool = False,
) -> Dict[str, str]:
    """Digests of what a model computes with real numbers: a pass in eval mode, a pass in train mode with gradients.

    Args:
        name: See `build`.
        model_kwargs: Keyword arguments of the model.
        composed: Modes ('eval', 'train') to call embed and forward_stages from outside in, in the fork.
        img_size: Image (height, width), the model's own by default.
        call: Keyword arguments of the forward pass: `is_causal`, and `attn_mask` as a (queries, keys) shape of random
            bools.
        checkpointing: Recompute activations in the backward pass.
        device: Where to compute.
        dtype: Of parameters and image.
        seed: Of everything random.
        fill: Give matrices and kernels random values at once, and do not initialise them before. How they are
            initialised is part of what `operations` records.
    """
    if device != 'cpu':
        # where an operation has no deterministic algorithm it warns, and the caller sees by a second run
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(seed)
    model_kwargs = dict(model_kwargs or {})
    with WithoutInitialization() if fill else contextlib.nullcontext():
        model = build(name, model_kwargs, img_size)
    randomize(model, seed, fill)
    model = model.to(device=device, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed + 1)
    size = input_size(model, img_size, model_kwargs.get('in_chans', 3))
    image = torch.randn(2, *size, generator=generator).to(device=device, dtype=getattr(torch, dtype))
    call = dict(call or {})
    if 'attn_mask' in call:
        call['attn_mask'] = (torch.rand(call['attn_mask'], generator=generator) > 0.3).to(device)
    if checkpointing:
        model.set_grad_checkpointing()

    # what was filled is noise that the name and the shape decide: reading it again proves nothing
    filled = {k for k, v in model.named_parameters() if fill and v.ndim > 1}
    result = {f'parameter {k}': f'{v.dtype}{list(v.shape)}' if k in filled else digest(v)
              for k, v in model.state_dict().items()}
    for mode in ('eval', 'train'):
        vars(model).pop('forward_features', None)
        if mode in composed:
            compose(model)
        torch.manual_seed(seed)
        one_pass = run(model.train(mode == 'train'), image, call, generator)
        result.update({f'{mode} {k}': v for k, v in one_pass.items()})
    if device != 'cpu':
        del model, image
        gc.collect()
        torch.cuda.empty_cache()  # the other process needs the memory
    return result


def values_of_first(img_sizes: Sequence[List[int]], **arguments) -> Dict[str, str]:
    """`values` for the first of some image sizes that the model takes, and which one that is."""
    for size in img_sizes[:-1]:
        try:
            return {**values(img_size=size, **arguments), 'image size': str(size)}
        except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
            continue  # too small
    return {**values(img_size=img_sizes[-1], **arguments), 'image size': str(img_sizes[-1])}


def run(
        model: nn.Module,
        image: torch.Tensor,
        call: Dict[str, Any],
        generator: torch.Generator,
) -> Dict[str, str]:
    """Digests of features, output, random state and buffers of one pass, in train mode of the gradients too."""
    with torch.set_grad_enabled(model.training):
        features = model.forward_features(image, **call)
        # an encoder without a classifier has no head, or one that refuses
        has_head = getattr(model, 'num_classes', 0) > 0 and hasattr(model, 'forward_head')
        output = model.forward_head(features) if has_head else features
    for place, feature in tensors(features):
        # numbers that are not finite, or are all the same, would be equal whatever was done to get them
        if feature.is_floating_point() and not (feature.isfinite().all() and feature.float().std() > 0):
            raise FloatingPointError(f'features {place} tell nothing')
    result = {f'features {k}': digest(v) for k, v in tensors(features)}
    result.update({f'output {k}': digest(v) for k, v in tensors(output)})
    if model.training:
        loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for _, t in tensors(output))
        loss.backward()
        result.update({
            f'gradient {k}': 'none' if p.grad is None else digest(p.grad) for k, p in model.named_parameters()})
        result.update({f'buffer {k} afterwards': digest(v) for k, v in model.named_buffers()})
    result['random state'] = digest(torch.get_rng_state())
    return result


def signature(class_path: str) -> List[str]:
    """Names, kinds and defaults of the parameters of forward_features."""
    parameters = inspect.signature(find_class(class_path).forward_features).parameters.values()
    return [f'{p.name}: {p.kind.name} = {p.default!r}' for p in parameters]
