""" What Is Converted: Tensors by Our Names, and How to Build the Modules They Belong to

Our names are those of `timm.mim.create_mim(...).state_dict()`: `backbone.*` as in a plain timm checkpoint, and what the
method adds. An encoder alone has the names of its backbone only.
"""
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from timm.models import create_model, is_model

from ..factory import create_mim, get_mim
from ..model_names import unknown_model

__all__ = [
    'BACKBONE', 'Checkpoint', 'ConversionError', 'Hints', 'Recipe', 'Tensors', 'check_tensors', 'known_hints',
    'method_options',
]

BACKBONE = 'backbone.'
Tensors = Dict[str, torch.Tensor]


class ConversionError(ValueError):
    """ A checkpoint that cannot be converted. The message is one line: what is wrong, what would work."""


class Hints(NamedTuple):
    """ What is known of a checkpoint besides its tensors: given by the user, or written next to the tensors.

    Attributes:
        model: Name of the timm model.
        img_size: Image (height, width) in pixels.
        model_kwargs: Arguments of the model.
        options: Options of the method.
    """
    model: Optional[str] = None
    img_size: Optional[Tuple[int, int]] = None
    model_kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}

    def over(self, other: 'Hints') -> 'Hints':
        """ These hints, completed by others. Arguments of another model are not taken over.
        """
        same_model = self.model is None or self.model == other.model
        return Hints(
            self.model or other.model,
            self.img_size or other.img_size,
            {**(other.model_kwargs if same_model else {}), **self.model_kwargs},
            {**other.options, **self.options},
        )


@dataclass(frozen=True)
class Recipe:
    """ How to build the module that tensors belong to.

    Attributes:
        method: Name of the method, None for a backbone alone.
        model: Name of the timm model.
        img_size: Image (height, width) in pixels, that of the model if None.
        model_kwargs: Arguments of the model.
        options: Options of the method.
    """
    method: Optional[str]
    model: str
    img_size: Optional[Tuple[int, int]]
    model_kwargs: Mapping[str, Any]
    options: Mapping[str, Any]

    @cached_property
    def module(self) -> nn.Module:
        """ The method, or the backbone alone, without weights (meta device).

        Raises:
            ConversionError: There is no such model, or it cannot be built so.
        """
        if not is_model(self.model):
            raise ConversionError(unknown_model(self.model))
        model_kwargs = dict(self.model_kwargs)
        try:
            with torch.device('meta'):
                if self.method is not None:
                    return create_mim(self.method, self.model, self.img_size, model_kwargs, **self.options)
                if self.img_size is not None:
                    model_kwargs['img_size'] = self.img_size
                return create_model(self.model, **{**model_kwargs, 'num_classes': 0})
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ConversionError(f"'{self.call()}' fails: {str(error).strip().splitlines()[0]}") from error

    @property
    def backbone(self) -> nn.Module:
        """ The backbone of the module."""
        return self.module if self.method is None else self.module.backbone

    def tensors(self) -> Tensors:
        """ The tensors (meta device) of the module, by our names.
        """
        prefix = BACKBONE if self.method is None else ''
        return {prefix + name: tensor for name, tensor in self.module.state_dict().items()}

    def encoder(self) -> 'Recipe':
        """ How to build the backbone alone.
        """
        return replace(self, method=None, options={})

    def as_dict(self) -> Dict[str, Any]:
        """ The same in dictionaries, lists, numbers and strings.
        """
        fields = dict(
            method=self.method, model=self.model, img_size=self.img_size, model_kwargs=self.model_kwargs,
            options=self.options)
        return _plain(fields)

    def call(self) -> str:
        """ The line of Python that builds the module.
        """
        size = self.img_size
        if size is not None and size[0] == size[1]:
            size = size[0]
        arguments = [] if size is None else [f'img_size={size}']
        if self.method is None:
            arguments = [repr(self.model), 'num_classes=0', *arguments, *_keywords(self.model_kwargs)]
            return f'timm.create_model({", ".join(arguments)})'
        arguments = [repr(self.method), repr(self.model), *arguments]
        if self.model_kwargs:
            arguments.append(f'model_kwargs=dict({", ".join(_keywords(self.model_kwargs))})')
        return f'timm.mim.create_mim({", ".join([*arguments, *_keywords(self.options)])})'


class Checkpoint(NamedTuple):
    """ Tensors by our names, and how to build the module they belong to if that is known.

    Attributes:
        tensors: Tensors by our names.
        method: Name of the method, None for a backbone alone.
        recipe: How to build the module.
    """
    tensors: Tensors
    method: Optional[str]
    recipe: Optional[Recipe] = None


def check_tensors(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], subject: str) -> None:
    """ Compare names and shapes of tensors with those that are expected.

    Raises:
        ConversionError: They differ; all that do are listed.
    """
    def shape(tensor: torch.Tensor) -> str:
        return ' x '.join(str(size) for size in tensor.shape) or 'scalar'

    differences = [
        ('unknown', [name for name in actual if name not in expected]),
        ('missing', [name for name in expected if name not in actual]),
        ('of another shape', [
            f'{name} ({shape(actual[name])}, not {shape(tensor)})'
            for name, tensor in expected.items() if name in actual and actual[name].shape != tensor.shape]),
    ]
    listed = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in differences if names)
    if listed:
        raise ConversionError(f'{subject}: {listed}.')


def known_hints(recipe: Recipe) -> Hints:
    """ What a recipe tells of a model that may have to be described in another way.
    """
    module = recipe.module
    model_kwargs, options = {}, _without(recipe.options, ('decoder_dim', 'decoder_depth'))
    heads = _num_heads(recipe.backbone)
    if heads is not None:
        model_kwargs['num_heads'] = heads
    if recipe.method == 'mae':
        options['decoder_heads'] = module.decoder.blocks[0].attn.num_heads
    if recipe.method == 'ijepa':
        options['predictor_heads'] = module.predictor.blocks[0].attn.num_heads
    img_size = recipe.img_size if recipe.method is None else module.img_size
    return Hints(img_size=img_size, model_kwargs=model_kwargs, options=options)


def method_options(method: str, options: Mapping[str, Any]) -> Dict[str, Any]:
    """ Those of some options that a method has.
    """
    known = inspect.signature(get_mim(method)).parameters
    return {name: value for name, value in options.items() if name in known}


def _num_heads(backbone: nn.Module) -> Optional[int]:
    blocks = getattr(backbone, 'blocks', None)
    return getattr(getattr(blocks[0], 'attn', None), 'num_heads', None) if blocks else None


def _without(options: Mapping[str, Any], names: Iterable[str]) -> Dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _keywords(arguments: Mapping[str, Any]) -> List[str]:
    return [f'{name}={value!r}' for name, value in arguments.items()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
