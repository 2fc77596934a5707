"""What the Formats of Other Projects Have in Common: Translation of Names, and the Base Class"""
import re
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors, check_tensors, known_hints
from .files import Source, write_file, write_pickle
from .geometry import FAMILY_CLASSES, TensorProblem, derive_recipe, family_of

__all__ = ['ForeignFormat', 'Names', 'join_qkv', 'move_downsampling', 'split_qkv']

PICKLE_SUFFIXES = ('.pth', '.pt', '.bin', '.tar', '.ckpt')
_NOT_COMPARED = ('Identity', 'Dropout', 'DropPath')  # how a model is trained, not what it computes

Pairs = Sequence[Tuple[str, str]]


class Names:
    """Translates names from theirs to ours and back.

    Args:
        beginnings: Pairs of their and our beginning of a name. The first that a name begins with is replaced, a name
            that begins with none has no translation.
        parts: Pairs of their and our part of a name, of which the first that occurs after the beginning is replaced.
    """

    def __init__(self, beginnings: Pairs, parts: Pairs = ()) -> None:
        self.beginnings = beginnings
        self.parts = parts

    def ours(self, name: str) -> Optional[str]:
        """Our name of their tensor, None if there is none."""
        return _translate(name, self.beginnings, self.parts)

    def theirs(self, name: str) -> Optional[str]:
        """Their name of our tensor, None if there is none."""
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
    """Join query, key and value (`attn.q`, `attn.k`, `attn.v`) where all three are there.

    Raises:
        TensorProblem: Their shapes or types differ.
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
    """Move the downsampling of Swin stages by some stages: timm's begins a stage, that of all others ends one."""
    def moved(match: re.Match) -> str:
        return f'layers.{int(match[1]) + step}.downsample.'

    return {re.sub(r'\blayers\.(\d+)\.downsample\.', moved, name): tensor for name, tensor in tensors.items()}


class ForeignFormat:
    """Base of the formats of other projects.

    What a format holds follows from one translation of names: the module that the tensors belong to is built without
    weights, its names are translated, and they have to be those of the file, no more and no less.

    Attributes:
        name: Name of the format.
        holds: What it holds, for people.
        suffixes: What the name of a file of that format ends with, none for a folder.
        method: Name of the method.
        encoder_alone: There are files with the encoder alone, too.
        families: Families of backbones, see `family_of`.
        class_token: Its plain vision transformers have a class token.
        square: Images and patches are square.
        writes_constants: Constants are written, and not only read where older files have them.
    """
    name = ''
    holds = ''
    suffixes: Tuple[str, ...] = PICKLE_SUFFIXES
    method = ''
    encoder_alone = False
    families: Tuple[str, ...] = ('vit',)
    class_token = True
    square = True
    writes_constants = True

    def recognises(self, source: Source) -> bool:
        """Some names in a file are those of this format."""
        raise NotImplementedError

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """Read what a file holds.

        Args:
            source: What it holds.
            hints: What the user knows of it.

        Raises:
            ConversionError: Tensors are unknown or missing, or do not tell enough about the model.
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
                raise ConversionError(f'{self.name}: {name} is a constant, and has not the value that it should have.')
        self.check_metadata(source, recipe)
        return Checkpoint(self.to_ours(tensors), recipe.method, recipe)

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Optional[Recipe]:
        """Write a checkpoint.

        Args:
            checkpoint: What to write.
            hints: What the user knows of it.
            path: File or folder to write.
            force: Replace a file that exists.

        Returns:
            How to build the module in timm.

        Raises:
            ConversionError: The format cannot hold the model, or the file exists or cannot be written.
        """
        recipe = self.recipe_to_write(checkpoint, hints)
        tensors = self.from_ours(checkpoint.tensors)
        if self.writes_constants:
            tensors.update({name: make() for name, make in self.constants(recipe).items()})
        self.save(tensors, recipe, path, force)
        return recipe

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        """The module of this format that a checkpoint belongs to, in every tensor and every layer."""
        if checkpoint.method != self.method and not (self.encoder_alone and checkpoint.method is None):
            raise ConversionError(f'{self.name} holds {self.method}, not {checkpoint.method or "an encoder alone"}.')
        subject = f'{self.name} cannot hold this model'
        if _family(checkpoint) not in self.families:
            raise ConversionError(f'{subject}, it is for {self.holds}.')
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
        if claimed != recipe:
            _check_same_layers(recipe.backbone, claimed.backbone, subject)
        patch_size = checkpoint.tensors[BACKBONE + 'patch_embed.proj.weight'].shape[2:]
        if self.square and (recipe.img_size[0] != recipe.img_size[1] or patch_size[0] != patch_size[1]):
            raise ConversionError(f'{subject}: its images and patches are square.')
        return recipe

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        """Write tensors by their names."""
        write_file(path, force, write_pickle(self.wrap(tensors)))

    # What a format says of itself

    names: Names

    def canonical(self, tensors: Tensors) -> Tensors:
        """Tensors of a file by the names of the format, if it knows several for the same.

        Raises:
            ConversionError: The file has a tensor by two of them.
        """
        return tensors

    def to_ours(self, tensors: Tensors) -> Tensors:
        """Tensors by our names, without those that have none."""
        return self.renamed(tensors, self.names.ours)

    def from_ours(self, tensors: Tensors) -> Tensors:
        """Tensors by their names, without those that have none."""
        return self.renamed(tensors, self.names.theirs)

    def renamed(self, tensors: Tensors, rename: Callable[[str], Optional[str]]) -> Tensors:
        """Rename tensors, leave out those whose new name is None.

        Raises:
            ConversionError: Two tensors get the same name.
        """
        renamed: Dict[str, Tuple[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            new_name = rename(name)
            if new_name in renamed:
                raise ConversionError(f'{self.name}: {renamed[new_name][0]} and {name} are names of the same tensor.')
            if new_name is not None:
                renamed[new_name] = name, tensor
        return {name: tensor for name, (_, tensor) in renamed.items()}

    def constants(self, recipe: Recipe) -> Dict[str, Callable[[], torch.Tensor]]:
        """Functions that make the tensors that hold no weights and are constants in our models, by their names."""
        return {}

    def hints(self, source: Source) -> Hints:
        """What a file tells besides the tensors.

        Args:
            source: What the file holds.

        Raises:
            ConversionError: A value in the file has another type than it should have.
        """
        return Hints()

    def check_metadata(self, source: Source, recipe: Recipe) -> None:
        """Check that what stands next to the tensors does not contradict them.

        Args:
            source: What the file holds.
            recipe: How to build the module of the tensors.

        Raises:
            ConversionError: It does.
        """

    def wrap(self, tensors: Tensors) -> Dict[str, Any]:
        """What `torch.save` is given."""
        return {'model': tensors}

    def family(self, tensors: Mapping[str, Any]) -> str:
        """Family of the backbone, by our names."""
        return self.families[0]

    def _derive(self, tensors: Tensors, hints: Hints) -> Recipe:
        whole = any(not name.startswith(BACKBONE) for name in tensors) or not self.encoder_alone
        method = self.method if whole else None
        return derive_recipe(tensors, method, self.family(tensors), hints, self.class_token)

    def _check_family(self, tensors: Tensors, recipe: Recipe) -> None:
        """Check that a model that the user named is of the family that the tensors show."""
        family = self.family(tensors)
        expected = next(class_name for class_name, known in FAMILY_CLASSES.items() if known == family)
        names = [model_class.__name__ for model_class in type(recipe.backbone).__mro__]
        if expected not in names:
            raise ConversionError(
                f'{self.name}: the tensors are those of a {expected}, {recipe.model} is a {names[0]}.')

    def _their_name(self, name: str) -> str:
        return next(iter(self.from_ours({name: torch.empty(3)})))


def _equal(tensor: torch.Tensor, constant: torch.Tensor) -> bool:
    return tensor.shape == constant.shape and torch.equal(tensor.to(constant.dtype), constant)


def _family(checkpoint: Checkpoint) -> Optional[str]:
    if checkpoint.recipe is None:
        return family_of(checkpoint.tensors)
    return FAMILY_CLASSES.get(type(checkpoint.recipe.backbone).__name__)


def _check_same_layers(model: nn.Module, other: nn.Module, subject: str) -> None:
    """Check what tensors do not show, activations and norms for example."""
    here, there = _layers(model), _layers(other)
    differing = [f'{name} is {there.get(name)}' for name in here if here[name] != there.get(name)]
    differing += [f'{name} is {there[name]}' for name in there if name not in here]
    if differing:
        raise ConversionError(f'{subject}: {differing[0]}.')


def _layers(model: nn.Module) -> Dict[str, str]:
    layers = {name: repr(module) for name, module in model.named_modules()
              if next(module.children(), None) is None and type(module).__name__ not in _NOT_COMPARED}
    return {'the model': type(model).__name__, **layers}
