"""What a model computes, as text that two processes can compare: one with stock timm, one with the fork.

Runs in both, so it imports nothing but torch and timm and uses nothing that only the fork has, `compose` and
`is_served` aside.
"""
import gc
import hashlib
import importlib
import inspect
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import timm


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


class OperationRecorder(TorchDispatchMode):
    """Writes one line per ATen call: operands by origin, scalars, result dtypes and shapes.

    The origin of a tensor is the name of a parameter, buffer or input, or the call that made it. Shapes alone would not
    do: with the blocks in reverse order every shape stays the same.
    """

    def __init__(self, model: nn.Module, inputs: Dict[str, torch.Tensor]):
        super().__init__()
        named = [*model.named_parameters(), *model.named_buffers(), *inputs.items()]
        self.origin = {id(tensor): name for name, tensor in named}
        self.alive = [tensor for _, tensor in named]  # an id is unique among living objects only
        self.lines: List[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operands = ', '.join(self.describe(a) for a in [*args, *(f'{k}={self.describe(v)}' for k, v in kwargs.items())])
        result = func(*args, **kwargs)
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
        for i, tensor in enumerate(outputs):
            # an in-place call returns its operand: what it holds from here on is another value
            self.origin[id(tensor)] = f'%{len(self.lines)}.{i}'
        self.alive += outputs
        shapes = ', '.join(f'{t.dtype}{list(t.shape)}' for t in outputs)
        self.lines.append(f'{func}({operands}) -> {shapes}')
        return result

    def describe(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return self.origin.get(id(value)) or f'constant {value.dtype}{list(value.shape)}'
        if isinstance(value, (list, tuple)):
            return f'[{", ".join(self.describe(v) for v in value)}]'
        return str(value)


def operations(
        name: str,
        model_kwargs: Optional[Dict[str, Any]] = None,
        train: bool = False,
        composed: bool = False,
        img_size: Optional[List[int]] = None,
) -> List[str]:
    """Every operation of one forward pass, on the meta device: no memory, no numbers, any size of model."""
    model_kwargs = dict(model_kwargs or {})
    with torch.device('meta'):
        # a fresh model for each trace, some cache on the first call
        model = build(name, model_kwargs, img_size).train(train)
        image = torch.empty(2, *input_size(model, img_size, model_kwargs.get('in_chans', 3)))
        if composed:
            compose(model)
        with torch.no_grad(), OperationRecorder(model, {'image': image}) as recorder:
            output = model(image)
    results = [recorder.describe(t) for _, t in tensors(output)]
    return recorder.lines + [f'return {", ".join(results)}']


def runs(name: str, img_size: List[int]) -> bool:
    """Whether a registered model can be built for, and run on, images of that size."""
    try:
        return bool(operations(name, img_size=img_size))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        return False


def tensors(value: Any, path: str = '') -> Iterator[Tuple[str, torch.Tensor]]:
    """All tensors of a nested result with their place in it."""
    if isinstance(value, torch.Tensor):
        yield path or '.', value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from tensors(v, f'{path}.{k}')
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from tensors(v, f'{path}.{i}')


def digest(value: torch.Tensor) -> str:
    """Equal for tensors that are equal bit for bit, in dtype and shape too."""
    shape, content = list(value.shape), value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f'{value.dtype}{shape}:{hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]}'


def randomize(model: nn.Module, seed: int) -> None:
    """Move every parameter and statistic off its initial value: zeros and ones would hide what is done with them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise.to(parameter))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(('running_mean', 'running_var')):
                buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator).to(buffer))


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
    """
    if device != 'cpu':
        # where an operation has no deterministic algorithm it warns, and the caller sees by a second run
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(seed)
    model_kwargs = dict(model_kwargs or {})
    model = build(name, model_kwargs, img_size)
    randomize(model, seed)
    model = model.to(device=device, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed + 1)
    size = input_size(model, img_size, model_kwargs.get('in_chans', 3))
    image = torch.randn(2, *size, generator=generator).to(device=device, dtype=getattr(torch, dtype))
    call = dict(call or {})
    if 'attn_mask' in call:
        call['attn_mask'] = (torch.rand(call['attn_mask'], generator=generator) > 0.3).to(device)
    if checkpointing:
        model.set_grad_checkpointing()

    result = {f'parameter {k}': digest(v) for k, v in model.state_dict().items()}
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
