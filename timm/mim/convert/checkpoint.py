"""Intermediate representation of a checkpoint: its tensors under our names, and how to build their module.

Our names are those of `timm.mim.create_mim(...).state_dict()`: `backbone.*` as in a plain timm checkpoint, and the
tensors of the method. An encoder has `backbone.*` only.
"""
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from timm.models import create_model, is_model, resolve_model_input_args
from timm.models._model_class import get_model_class

from ..errors import first_line
from ..factory import create_mim, unknown_model
from ..teacher import TeacherTarget

__all__ = [
    'BACKBONE', 'TARGETS_WITHOUT_A_MODEL', 'Checkpoint', 'ConversionError', 'Hints', 'Recipe', 'Tensors',
    'check_tensors', 'known_hints', 'shape_text',
]

BACKBONE = 'backbone.'
Tensors = Dict[str, torch.Tensor]
# errors that constructors of models and methods raise for arguments that do not fit together; few check them explicitly
_CONSTRUCTION_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
TARGETS_WITHOUT_A_MODEL = ('pixels', 'normalized_pixels', 'hog')


class ConversionError(ValueError):
    """Raised when a checkpoint cannot be converted.

    The message is one line: what is wrong, and what would work. Since it may quote names from a file, line breaks and
    terminal control characters are replaced by '?'.
    """

    def __init__(self, message: str) -> None:
        super().__init__(''.join(char if char.isprintable() else '?' for char in message))


class Hints(NamedTuple):
    """Information about a checkpoint besides its tensors, given by the user or stored next to the tensors.

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
        """Return these hints, completed by `other`; model arguments are only combined if both are for the same model.
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
    """How to build the module that tensors belong to.

    Attributes:
        method: Name of the method, None for a plain backbone.
        model: Name of the timm model.
        img_size: Image (height, width) in pixels. The size of the model if None.
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
        """The method or plain backbone on the meta device, without weights. A teacher has no weights either.

        Raises:
            ConversionError: The model is unknown, or cannot be built with these arguments.
        """
        if not is_model(self.model):
            raise ConversionError(unknown_model(self.model))
        model_kwargs, options = dict(self.model_kwargs), dict(self.options)
        if self.teacher is not None:
            options['target'] = _features_without_weights(self.teacher)
        try:
            with torch.device('meta'):
                if self.method is not None:
                    return create_mim(self.method, self.model, self.img_size, model_kwargs, **options)
                if self.img_size is not None:
                    model_kwargs['img_size'] = self.img_size
                return create_model(self.model, **{**model_kwargs, 'num_classes': 0})
        except _CONSTRUCTION_ERRORS as error:
            raise ConversionError(f"'{self.call()}' fails: {first_line(error)}") from error

    @property
    def teacher(self) -> Optional[str]:
        """Name of the model whose pretrained features SimMIM predicts, or None for other targets.

        Raises:
            ConversionError: timm has no model of that name.
        """
        target = self.options.get('target', 'pixels') if self.method == 'simmim' else 'pixels'
        if target in TARGETS_WITHOUT_A_MODEL:
            return None
        if not isinstance(target, str) or not is_model(target):
            raise ConversionError(
                f'The target {target!r} is none of {", ".join(TARGETS_WITHOUT_A_MODEL)}, and not a model that '
                'timm.list_models() lists; --to encoder converts the encoder without it.')
        return target

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the module."""
        return self.module if self.method is None else self.module.backbone

    def tensors(self) -> Tensors:
        """Return the tensors of the module on the meta device, by our names."""
        prefix = BACKBONE if self.method is None else ''
        return {prefix + name: tensor for name, tensor in self.module.state_dict().items()}

    def encoder(self) -> 'Recipe':
        """Return the recipe of the backbone alone."""
        takes_size = 'img_size' in inspect.signature(get_model_class(self.model)).parameters
        return replace(self, method=None, img_size=self.img_size if takes_size else None, options={})

    def as_dict(self) -> Dict[str, Any]:
        """Return the recipe as dictionaries, lists, numbers and strings, for JSON."""
        fields = dict(
            method=self.method, model=self.model, img_size=self.img_size, model_kwargs=self.model_kwargs,
            options=self.options)
        return _plain(fields)

    def call(self) -> str:
        """Return the line of Python that builds the module."""
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
    """Tensors by our names, and how to build their module, if known.

    Attributes:
        tensors: Tensors by our names.
        method: Name of the method, None for a plain backbone.
        recipe: How to build the module.
    """
    tensors: Tensors
    method: Optional[str]
    recipe: Optional[Recipe] = None


def check_tensors(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], subject: str) -> None:
    """Check names, shapes and types (floating point or not) of tensors against the expected tensors.

    Raises:
        ConversionError: Tensors differ. The message lists all of them.
    """
    common = [(name, tensor, actual[name]) for name, tensor in expected.items() if name in actual]
    differences = [
        ('unknown', [name for name in actual if name not in expected]),
        ('missing', [name for name in expected if name not in actual]),
        ('of another shape', [
            f'{name} ({shape_text(there)}, not {shape_text(here)})'
            for name, here, there in common if here.shape != there.shape]),
        ('of another type', [
            f'{name} ({there.dtype}, not {here.dtype})'.replace('torch.', '')
            for name, here, there in common if here.is_floating_point() != there.is_floating_point()]),
    ]
    listed = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in differences if names)
    if listed:
        raise ConversionError(f'{subject}: {listed}.')


def known_hints(recipe: Recipe) -> Hints:
    """Return hints from a recipe for a format that describes the model with a different recipe."""
    module = recipe.module
    model_kwargs, options = {}, _without(recipe.options, ('decoder_dim', 'decoder_depth'))
    heads = _num_heads(recipe.backbone)
    if heads is not None:
        model_kwargs['num_heads'] = heads
    if recipe.method == 'mae' and len(module.decoder.blocks):
        block = module.decoder.blocks[0]
        attention = block.cross_attn if hasattr(block, 'cross_attn') else block.attn
        options['decoder_heads'] = attention.num_heads
    if recipe.method == 'ijepa' and len(module.predictor.blocks):
        options['predictor_heads'] = module.predictor.blocks[0].attn.num_heads
    img_size = recipe.img_size if recipe.method is None else module.img_size
    return Hints(img_size=img_size, model_kwargs=model_kwargs, options=options)


def shape_text(tensor: torch.Tensor) -> str:
    """Return the shape of a tensor as a text, such as `48 x 3 x 8 x 8`."""
    return ' x '.join(str(size) for size in tensor.shape) or 'scalar'


def _features_without_weights(teacher: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a target that has the shape of a teacher's features but uses a model without pretrained weights."""
    def target(images: torch.Tensor) -> torch.Tensor:
        model = create_model(**resolve_model_input_args(
            teacher, dict(img_size=tuple(images.shape[2:])), num_classes=0, in_chans=images.shape[1]))
        return TeacherTarget(model, (0.,) * images.shape[1], (1.,) * images.shape[1])(images)
    return target


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
