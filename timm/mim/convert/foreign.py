""" What Formats Other Than Ours Have in Common
"""
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import torch
import torch.nn as nn

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors, check_tensors, known_hints
from .files import Source, write_file, write_pickle
from .geometry import FAMILY_CLASSES, MissingTensor, derive_recipe, family_of
from .names import Names

__all__ = ['ForeignFormat']

PICKLE_SUFFIXES = ('.pth', '.pt', '.bin', '.tar', '.ckpt')
_NOT_COMPARED = ('Identity', 'Dropout', 'DropPath')  # how a model is trained, not what it computes


class ForeignFormat:
    """ Base of the formats of other projects.

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
        """ Some names in a file are those of this format.
        """
        raise NotImplementedError

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """ Read what a file holds.

        Args:
            source: What it holds.
            hints: What the user knows of it.

        Raises:
            ConversionError: Tensors are unknown or missing, or do not tell enough about the model.
        """
        theirs = self.canonical(source.tensors)
        try:
            recipe = self._derive(self.to_ours(theirs), hints.over(self.hints(source)))
        except MissingTensor as error:
            raise ConversionError(f'{self.name}: missing: {self._their_name(error.args[0])}.') from None
        constants = self.constants(recipe)
        tensors = {name: tensor for name, tensor in theirs.items() if name not in constants}
        check_tensors(self.from_ours(recipe.tensors()), tensors, f'{self.name}, read as {recipe.call()}')
        for name, constant in constants.items():
            if name in theirs and not torch.equal(theirs[name].to(constant.dtype), constant):
                raise ConversionError(f'{self.name}: {name} is a constant, and has not the value that it should have.')
        return Checkpoint(self.to_ours(tensors), recipe.method, recipe)

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Optional[Recipe]:
        """ Write a checkpoint.

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
            tensors.update(self.constants(recipe))
        self.save(tensors, recipe, path, force)
        return recipe

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        """ The module of this format that a checkpoint belongs to, in every tensor and every layer.
        """
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
        except MissingTensor as error:
            raise ConversionError(f'{subject}: missing: {error.args[0]}.') from None
        check_tensors(recipe.tensors(), checkpoint.tensors, subject)
        if claimed != recipe:
            _check_same_layers(recipe.backbone, claimed.backbone, subject)
        patch_size = checkpoint.tensors[BACKBONE + 'patch_embed.proj.weight'].shape[2:]
        if self.square and (recipe.img_size[0] != recipe.img_size[1] or patch_size[0] != patch_size[1]):
            raise ConversionError(f'{subject}: its images and patches are square.')
        return recipe

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        """ Write tensors by their names.
        """
        write_file(path, force, write_pickle(self.wrap(tensors)))

    # What a format says of itself

    names: Names

    def canonical(self, tensors: Tensors) -> Tensors:
        """ Tensors of a file by the names of the format, if it knows several for the same.
        """
        return tensors

    def to_ours(self, tensors: Tensors) -> Tensors:
        """ Tensors by our names, without those that have none.
        """
        return {ours: tensor for name, tensor in tensors.items() if (ours := self.names.ours(name)) is not None}

    def from_ours(self, tensors: Tensors) -> Tensors:
        """ Tensors by their names, without those that have none.
        """
        return {theirs: tensor for name, tensor in tensors.items() if (theirs := self.names.theirs(name)) is not None}

    def constants(self, recipe: Recipe) -> Tensors:
        """ Tensors by their names that hold no weights, and are constants in our models.
        """
        return {}

    def hints(self, source: Source) -> Hints:
        """ What a file tells besides the tensors.
        """
        return Hints()

    def wrap(self, tensors: Tensors) -> Dict[str, Any]:
        """ What `torch.save` is given.
        """
        return {'model': tensors}

    def family(self, tensors: Mapping[str, Any]) -> str:
        """ Family of the backbone, by our names.
        """
        return self.families[0]

    def _derive(self, tensors: Tensors, hints: Hints) -> Recipe:
        whole = any(not name.startswith(BACKBONE) for name in tensors) or not self.encoder_alone
        method = self.method if whole else None
        return derive_recipe(tensors, method, self.family(tensors), hints, self.class_token)

    def _their_name(self, name: str) -> str:
        return next(iter(self.from_ours({name: torch.empty(3)})))


def _family(checkpoint: Checkpoint) -> Optional[str]:
    if checkpoint.recipe is None:
        return family_of(checkpoint.tensors)
    return FAMILY_CLASSES.get(type(checkpoint.recipe.backbone).__name__)


def _check_same_layers(model: nn.Module, other: nn.Module, subject: str) -> None:
    """ Check what tensors do not show, activations and norms for example.
    """
    here, there = _layers(model), _layers(other)
    differing = [f'{name} is {there.get(name)}' for name in here if here[name] != there.get(name)]
    differing += [f'{name} is {there[name]}' for name in there if name not in here]
    if differing:
        raise ConversionError(f'{subject}: {differing[0]}.')


def _layers(model: nn.Module) -> Dict[str, str]:
    layers = {name: repr(module) for name, module in model.named_modules()
              if next(module.children(), None) is None and type(module).__name__ not in _NOT_COMPARED}
    return {'the model': type(model).__name__, **layers}
