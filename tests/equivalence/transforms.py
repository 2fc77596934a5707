"""What else is done with a model: scripted, traced, compiled. Imported by both processes, like `probe`."""
from typing import Any, Callable, Dict, List, Optional

import torch
import torch.nn as nn
from torchvision.models.feature_extraction import NodePathTracer

from timm.layers import set_scriptable
from timm.models import get_notrace_functions, get_notrace_modules

import probe


def script(model: nn.Module, image: torch.Tensor) -> Callable:
    return torch.jit.script(model)


def trace(model: nn.Module, image: torch.Tensor) -> Callable:
    return torch.jit.trace(model, image, check_trace=False)  # the caller compares


def trace_symbolically(model: nn.Module, image: torch.Tensor) -> Callable:
    """As `timm.models.create_feature_extractor` does, once and up to the output."""
    tracer = NodePathTracer(
        leaf_modules=list(get_notrace_modules()), autowrap_functions=list(get_notrace_functions()))
    return torch.fx.GraphModule(model, tracer.trace(model))


def compile_features(model: nn.Module, image: torch.Tensor) -> Callable:
    """One graph of `forward_features`, in the fork of its two halves."""
    torch._dynamo.reset()
    if hasattr(model, 'forward_stages'):
        return torch.compile(lambda x: model.forward_stages(model.embed(x)), fullgraph=True, backend='eager')
    return torch.compile(model.forward_features, fullgraph=True, backend='eager')


TRANSFORMS = {'script': script, 'trace': trace, 'fx': trace_symbolically, 'compile': compile_features}


@torch.no_grad()
def problem(transform: str, name: str, model_kwargs: Dict[str, Any], img_size: List[int]) -> Optional[str]:
    """Why a model cannot be transformed, or gives something else than before; None if all is well."""
    torch.manual_seed(0)
    with set_scriptable(transform == 'script'):
        model = probe.build(name, model_kwargs).eval()
    vars(model).pop('forward_head', None)  # of an encoder that a builder gave one
    probe.randomize(model, seed=0)
    image = torch.randn(2, *probe.input_size(model, img_size, model_kwargs.get('in_chans', 3)))
    # first of all, some modules cache on their first call
    expected = (model.forward_features if transform == 'compile' else model)(image)
    try:
        result = TRANSFORMS[transform](model, image)(image)
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    pairs = zip(probe.tensors(result), probe.tensors(expected), strict=True)
    same = all(place == other and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for (place, a), (other, b) in pairs)
    return None if same else 'other values'
