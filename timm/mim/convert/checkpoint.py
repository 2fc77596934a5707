"""What Is Converted: Tensors by Our Names, and How to Build the Modules They Belong to

Our names are those of `timm.mim.create_mim(...).state_dict()`: `backbone.*` as in a plain timm checkpoint, and what the
method adds. An encoder alone has the names of its backbone only.
"""
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from timm.models import create_model, is_model, resolve_model_input_args

from ..errors import first_line
from ..factory import create_mim, unknown_model
from ..teacher import TeacherTarget

__all__ = [
    'BACKBONE', 'TARGETS_WITHOUT_A_MODEL', 'Checkpoint', 'ConversionError', 'Hints', 'Recipe', 'Tensors',
    'check_tensors', 'known_hints', 'shape_text',
]

BACKBONE = 'backbone.'
Tensors = Dict[str, torch.Tensor]


# What the constructors of models and methods raise for arguments that do not fit together. Some check, most do not.
_CONSTRUCTION_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
TARGETS_WITHOUT_A_MODEL = ('pixels', 'normalized_pixels', 'hog')


class ConversionError(ValueError):
    """A checkpoint that cannot be converted.

    The message is one line: what is wrong, and what would work. It may quote names that stand in a file, so characters
    that would begin a new line or control the terminal are replaced.
    """

    def __init__(self, message: str) -> None:
        super().__init__(''.join(char if char.isprintable() else '?' for char in message))


class Hints(NamedTuple):
    """What is known of a checkpoint besides its tensors: given by the user, or written next to the tensors.

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
        """These hints, completed by others. Arguments of another model are not taken over."""
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
        """The method, or the backbone alone, without weights (meta device). A teacher is built without weights, too.

        Raises:
            ConversionError: There is no such model, or it cannot be built with these arguments.
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
        """Name of the model whose pretrained features SimMIM predicts, None if it predicts something else.

        Raises:
            ConversionError: It is not a model that timm.list_models() names.
        """
        target = self.options.get('target', 'pixels') if self.method == 'simmim' else 'pixels'
        if target in TARGETS_WITHOUT_A_MODEL:
            return None
        if not isinstance(target, str) or not is_model(target):
            raise ConversionError(
                f'The target {target!r} is not {", ".join(TARGETS_WITHOUT_A_MODEL)}, or a model that '
                'timm.list_models() names. No other is fetched; --to encoder converts the encoder without it.')
        return target

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the module."""
        return self.module if self.method is None else self.module.backbone

    def tensors(self) -> Tensors:
        """The tensors (meta device) of the module, by our names."""
        prefix = BACKBONE if self.method is None else ''
        return {prefix + name: tensor for name, tensor in self.module.state_dict().items()}

    def encoder(self) -> 'Recipe':
        """How to build the backbone alone."""
        return replace(self, method=None, options={})

    def as_dict(self) -> Dict[str, Any]:
        """The same in dictionaries, lists, numbers and strings."""
        fields = dict(
            method=self.method, model=self.model, img_size=self.img_size, model_kwargs=self.model_kwargs,
            options=self.options)
        return _plain(fields)

    def call(self) -> str:
        """The line of Python that builds the module."""
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
    """Tensors by our names, and how to build the module they belong to if that is known.

    Attributes:
        tensors: Tensors by our names.
        method: Name of the method, None for a backbone alone.
        recipe: How to build the module.
    """
    tensors: Tensors
    method: Optional[str]
    recipe: Optional[Recipe] = None


def check_tensors(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], subject: str) -> None:
    """Compare names, shapes and kinds of numbers of tensors with those that are expected.

    Raises:
        ConversionError: They differ; all that do are listed.
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
    """What a recipe tells of a model that may have to be described in another way."""
    module = recipe.module
    model_kwargs, options = {}, _without(recipe.options, ('decoder_dim', 'decoder_depth'))
    heads = _num_heads(recipe.backbone)
    if heads is not None:
        model_kwargs['num_heads'] = heads
    if recipe.method == 'mae' and len(module.decoder.blocks):
        options['decoder_heads'] = module.decoder.blocks[0].attn.num_heads
    if recipe.method == 'ijepa' and len(module.predictor.blocks):
        options['predictor_heads'] = module.predictor.blocks[0].attn.num_heads
    img_size = recipe.img_size if recipe.method is None else module.img_size
    return Hints(img_size=img_size, model_kwargs=model_kwargs, options=options)


def shape_text(tensor: torch.Tensor) -> str:
    """Write the shape of a tensor as in `48 x 3 x 8 x 8`."""
    return ' x '.join(str(size) for size in tensor.shape) or 'scalar'


def _features_without_weights(teacher: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a target with the shape of a teacher's features, from a model without pretrained weights."""
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
