"""Base class of the formats of other projects, and the translation of their tensor names."""
import re
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors, check_tensors, known_hints
from .files import Source, write_file, write_pickle
from .geometry import FAMILY_CLASSES, TensorProblem, derive_recipe, family_of

__all__ = ['ForeignFormat', 'Names', 'check_same_layers', 'join_qkv', 'move_downsampling', 'split_qkv']

PICKLE_SUFFIXES = ('.pth', '.pt', '.bin', '.tar', '.ckpt')
_NOT_COMPARED = ('Identity', 'Dropout', 'DropPath')  # layers that do nothing in eval mode

Pairs = Sequence[Tuple[str, str]]


class Names:
    """Translate tensor names from another project's to ours and back.

    Args:
        beginnings: Pairs (theirs, ours) of beginnings of names. The first pair that matches is applied; a name that
            matches none has no translation.
        parts: Pairs (theirs, ours) of parts of names. The first pair that matches after the beginning is applied.
    """

    def __init__(self, beginnings: Pairs, parts: Pairs = ()) -> None:
        self.beginnings = beginnings
        self.parts = parts

    def ours(self, name: str) -> Optional[str]:
        """Return our name for their name, or None if there is none."""
        return _translate(name, self.beginnings, self.parts)

    def theirs(self, name: str) -> Optional[str]:
        """Return their name for our name, or None if there is none."""
        beginnings, parts = ([(ours, theirs) for theirs, ours in pairs] for pairs in (self.beginnings, self.parts))
        return _translate(name, beginnings, parts)


def _translate(name: str, beginnings: Pairs, parts: Pairs) -> Optional[str]:
    for source, target in beginnings:
        if name.startswith(source):
            rest = name[len(source):]
            part = next((part for part in parts if part[0] in rest), ('', ''))
            return target + rest.replace(*part, 1)
    return None


def join_qkv(tensors: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Concatenate query, key and value (`attn.q`, `attn.k`, `attn.v`) to `attn.qkv` where all three exist.

    Raises:
        TensorProblem: Their shapes or dtypes differ.
    """
    joined = dict(tensors)
    for name in tensors:
        if '.attn.q.' in name:
            names = [name.replace('.attn.q.', f'.attn.{part}.') for part in 'qkv']
            if all(part in tensors for part in names):
                parts = [joined.pop(part) for part in names]
                for part, tensor in zip(names, parts):
                    if tensor.shape != parts[0].shape or tensor.dtype != parts[0].dtype or not tensor.ndim:
                        raise TensorProblem(part, 'of another shape or type than query, key and value of a block')
                joined[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat(parts)
    return joined


def split_qkv(tensors: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Split `attn.qkv` into query, key and value."""
    split = {}
    for name, tensor in tensors.items():
        if '.attn.qkv.' in name:
            split.update((name.replace('.attn.qkv.', f'.attn.{p}.'), t) for p, t in zip('qkv', tensor.chunk(3)))
        else:
            split[name] = tensor
    return split


def move_downsampling(tensors: Mapping[str, torch.Tensor], step: int) -> Dict[str, torch.Tensor]:
    """Renumber the downsampling layers of Swin stages: timm puts them at the start of a stage, others at the end."""
    def moved(match: re.Match) -> str:
        return f'layers.{int(match[1]) + step}.downsample.'

    return {re.sub(r'\blayers\.(\d+)\.downsample\.', moved, name): tensor for name, tensor in tensors.items()}


class ForeignFormat:
    """Base class of the formats of other projects.

    A format is defined by a translation of tensor names. To read a file, the module that its tensors belong to is built
    without weights, and the translated names of the module must be exactly those in the file.

    Attributes:
        name: Name of the format.
        holds: Models that it can hold, for error messages.
        suffixes: Allowed file name suffixes, empty if the format is a folder.
        method: Name of the method.
        encoder_alone: The format also exists with the encoder only.
        families: Families of backbones, see `family_of`.
        class_token: Its plain vision transformers have a class token.
        registers: Its plain vision transformers have register tokens with positions.
        square: Images and patches must be square.
        writes_constants: Write constants; otherwise they are only read, from older files that have them.
        names: Translation of tensor names.
    """
    name = ''
    holds = ''
    suffixes: Tuple[str, ...] = PICKLE_SUFFIXES
    method = ''
    encoder_alone = False
    families: Tuple[str, ...] = ('vit',)
    class_token = True
    registers = False
    square = True
    writes_constants = True

    def recognises(self, source: Source) -> bool:
        """Whether the tensor names of a file are those of this format."""
        raise NotImplementedError

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """Read a checkpoint.

        Args:
            source: Contents of the file.
            hints: Information from the user.

        Raises:
            ConversionError: Tensors are unknown, missing or inconsistent, or do not determine the model.
        """
        theirs = self.canonical(source.tensors)
        try:
            ours = self.to_ours(theirs)
            recipe = self._derive(ours, hints.over(self.hints(source)))
        except TensorProblem as error:
            raise ConversionError(f'{self.name}: {error.message(self._their_name(error.name))}.') from None
        self._check_family(ours, recipe)
        constants = self.constants(recipe)
        tensors = {name: tensor for name, tensor in theirs.items() if name not in constants}
        check_tensors(self.from_ours(recipe.tensors()), tensors, f'{self.name}, read as {recipe.call()}')
        for name in theirs:
            if name in constants and not _equal(theirs[name], constants[name]()):
                raise ConversionError(f'{self.name}: {name} is a constant, but its value in the file is wrong.')
        self.check_metadata(source, recipe)
        return Checkpoint(self.to_ours(tensors), recipe.method, recipe)

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Optional[Recipe]:
        """Write a checkpoint.

        Args:
            checkpoint: Checkpoint to write.
            hints: Information from the user.
            path: File or folder to write.
            force: Replace an existing file.

        Returns:
            How to build the module in timm.

        Raises:
            ConversionError: The format cannot hold the model, the file exists, or it cannot be written.
        """
        recipe = self.recipe_to_write(checkpoint, hints)
        tensors = self.from_ours(checkpoint.tensors)
        if self.writes_constants:
            tensors.update({name: make() for name, make in self.constants(recipe).items()})
        self.save(tensors, recipe, path, force)
        return recipe

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        """Return the recipe of the module of this format that has the same tensors and layers as the checkpoint.

        Raises:
            ConversionError: The format cannot hold the model.
        """
        self.check_method(checkpoint)
        subject = f'{self.name} cannot hold this model'
        if _family(checkpoint) not in self.families:
            raise ConversionError(f'{subject}: it is for {self.holds}.')
        hints = hints._replace(model=None)
        if checkpoint.recipe is not None:
            hints = hints.over(known_hints(checkpoint.recipe))
        heads = {name: value for name, value in hints.model_kwargs.items() if name == 'num_heads'}
        try:
            recipe = self._derive(checkpoint.tensors, hints._replace(model_kwargs=heads))
            claimed = checkpoint.recipe or self._derive(checkpoint.tensors, hints)
        except TensorProblem as error:
            raise ConversionError(f'{subject}: {error.message(error.name)}.') from None
        check_tensors(recipe.tensors(), checkpoint.tensors, subject)
        nameless = checkpoint.tensors.keys() - self.to_ours(self.from_ours(checkpoint.tensors)).keys()
        if nameless:
            raise ConversionError(f'{subject}: it has no name for {min(nameless)}.')
        if claimed != recipe:
            check_same_layers(recipe.backbone, claimed.backbone, subject)
        patch_size = checkpoint.tensors[BACKBONE + 'patch_embed.proj.weight'].shape[2:]
        if self.square and (recipe.img_size[0] != recipe.img_size[1] or patch_size[0] != patch_size[1]):
            raise ConversionError(f'{subject}: images and patches must be square.')
        return recipe

    def check_method(self, checkpoint: Checkpoint) -> None:
        """Check that the format can hold the method of a checkpoint.

        Raises:
            ConversionError: It cannot.
        """
        if checkpoint.method != self.method and not (self.encoder_alone and checkpoint.method is None):
            raise ConversionError(f'{self.name} holds {self.method}, not {checkpoint.method or "only an encoder"}.')

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        """Write tensors, which have the names of this format."""
        write_file(path, force, write_pickle(self.wrap(tensors)))

    # methods and attributes that a format overrides

    names: Names

    def canonical(self, tensors: Tensors) -> Tensors:
        """Rename alternative tensor names to the standard names of the format.

        Raises:
            ConversionError: The file contains a tensor under two names.
        """
        return tensors

    def to_ours(self, tensors: Tensors) -> Tensors:
        """Translate tensors to our names, and drop those without a translation."""
        return self.renamed(tensors, self.names.ours)

    def from_ours(self, tensors: Tensors) -> Tensors:
        """Translate tensors to the names of this format, and drop those without a translation."""
        return self.renamed(tensors, self.names.theirs)

    def renamed(self, tensors: Tensors, rename: Callable[[str], Optional[str]]) -> Tensors:
        """Rename tensors, and drop those whose new name is None.

        Raises:
            ConversionError: Two tensors get the same name.
        """
        renamed: Dict[str, Tuple[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            new_name = rename(name)
            if new_name in renamed:
                raise ConversionError(f'{self.name}: {renamed[new_name][0]} and {name} name the same tensor.')
            if new_name is not None:
                renamed[new_name] = name, tensor
        return {name: tensor for name, (_, tensor) in renamed.items()}

    def constants(self, recipe: Recipe) -> Dict[str, Callable[[], torch.Tensor]]:
        """Return functions that make the format's constant tensors, by their names in the format.

        These tensors hold no weights; timm computes them instead of storing them.
        """
        return {}

    def hints(self, source: Source) -> Hints:
        """Read information from a file besides the tensors.

        Args:
            source: Contents of the file.

        Raises:
            ConversionError: A value in the file has the wrong type.
        """
        return Hints()

    def check_metadata(self, source: Source, recipe: Recipe) -> None:
        """Check that the values next to the tensors do not contradict the tensors.

        Args:
            source: Contents of the file.
            recipe: How to build the module of the tensors.

        Raises:
            ConversionError: A value contradicts the tensors.
        """

    def wrap(self, tensors: Tensors) -> Dict[str, Any]:
        """Return the dictionary to save with `torch.save`."""
        return {'model': tensors}

    def family(self, tensors: Mapping[str, Any]) -> str:
        """Return the family of the backbone of tensors with our names."""
        return self.families[0]

    def _derive(self, tensors: Tensors, hints: Hints) -> Recipe:
        whole = any(not name.startswith(BACKBONE) for name in tensors) or not self.encoder_alone
        method = self.method if whole else None
        return derive_recipe(tensors, method, self.family(tensors), hints, self.class_token, self.registers)

    def _check_family(self, tensors: Tensors, recipe: Recipe) -> None:
        """Check that the model named by the user belongs to the family of the tensors."""
        family = self.family(tensors)
        expected = next(class_name for class_name, known in FAMILY_CLASSES.items() if known == family)
        names = [model_class.__name__ for model_class in type(recipe.backbone).__mro__]
        if expected not in names:
            raise ConversionError(
                f'{self.name}: the tensors are those of a {expected}, but {recipe.model} is a {names[0]}.')

    def _their_name(self, name: str) -> str:
        return next(iter(self.from_ours({name: torch.empty(3)})))


def _equal(tensor: torch.Tensor, constant: torch.Tensor) -> bool:
    return tensor.shape == constant.shape and torch.equal(tensor.to(constant.dtype), constant)


def _family(checkpoint: Checkpoint) -> Optional[str]:
    if checkpoint.recipe is None:
        return family_of(checkpoint.tensors)
    return FAMILY_CLASSES.get(type(checkpoint.recipe.backbone).__name__)


def check_same_layers(model: nn.Module, other: nn.Module, subject: str) -> None:
    """Check that two models have the same layers, including those without tensors, such as activations."""
    here, there = _layers(model), _layers(other)
    differing = [f'{name} is {there.get(name)}' for name in here if here[name] != there.get(name)]
    differing += [f'{name} is {there[name]}' for name in there if name not in here]
    if differing:
        raise ConversionError(f'{subject}: {differing[0]}.')


def _layers(model: nn.Module) -> Dict[str, str]:
    layers = {name: repr(module) for name, module in model.named_modules()
              if next(module.children(), None) is None and type(module).__name__ not in _NOT_COMPARED}
    return {'the model': type(model).__name__, **layers}
