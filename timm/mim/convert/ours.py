"""Our own formats: a method, a training checkpoint, an encoder."""
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors, check_tensors
from .fields import Fields, has_option, method_name, method_options, model_arguments, model_name
from .files import Source, write_file, write_pickle, write_safetensors
from .foreign import PICKLE_SUFFIXES
from .geometry import TensorProblem, derive_recipe, family_of

__all__ = ['Encoder', 'Method', 'TargetEncoder', 'TrainingCheckpoint']

# a tensor that the method has, and no method that follows here has
_METHODS = {
    'decoder.layers.0.weight': 'data2vec', 'decoder.weight': 'data2vec', 'mask_tokens.0': 'spark',
    'pred.proj.weight': 'fcmae', 'decoder.proj.weight': 'simmim', 'decoder.mask_token': 'mae',
    'clustering.weight': 'capi', 'predictor.mask_token': 'ijepa',
}


class Method:
    """The `state_dict` of a method, `create_mim(...).state_dict()`."""
    name = 'mim'
    holds = 'a method'
    suffixes: Tuple[str, ...] = ('.safetensors',)

    def recognises(self, source: Source) -> bool:
        names = source.tensors
        return source.layout != 'task' and any(name.startswith(BACKBONE) for name in names)

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """Read what a file holds. Its tensors are compared with a model when they are written."""
        known, method = _known(source, hints)
        hints = hints.over(known)
        method = method or next((m for name, m in _METHODS.items() if name in source.tensors), None)
        if method is None:
            raise ConversionError(f'{self.name}: the tensors do not determine the method, there is no mask token.')
        recipe = None
        if hints.model is not None:
            recipe = Recipe(method, hints.model, hints.img_size, hints.model_kwargs, hints.options)
        return Checkpoint(source.tensors, method, recipe)

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Recipe:
        """Write a checkpoint, see `ForeignFormat.write`."""
        recipe = self._checked_recipe(checkpoint, hints)
        write_file(path, force, write_safetensors(checkpoint.tensors, dict(mim=recipe.as_dict())))
        return recipe

    def _checked_recipe(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        if checkpoint.method is None:
            raise ConversionError(
                f'{self.name} holds a method with its decoder, but the source contains only an encoder: use --to '
                'encoder.')
        return _checked_recipe(checkpoint, hints)


class TrainingCheckpoint(Method):
    """Checkpoint of train.py: the encoder as `state_dict`, the other tensors of the method as task state."""
    name = 'task'
    holds = 'a checkpoint of train.py'
    suffixes = PICKLE_SUFFIXES

    def recognises(self, source: Source) -> bool:
        return source.layout == 'task'

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Recipe:
        recipe = self._checked_recipe(checkpoint, hints)
        rest = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(BACKBONE)}
        content = dict(
            arch=recipe.model,
            state_dict=_part(checkpoint.tensors, BACKBONE),
            task_state=dict(method=rest),
            mim=recipe.as_dict(),
        )
        write_file(path, force, write_pickle(content))
        return recipe


class Encoder:
    """A plain timm model without a classifier."""
    name = 'encoder'
    holds = 'a plain timm model'
    suffixes: Tuple[str, ...] = ('.safetensors',)
    part = BACKBONE

    def recognises(self, source: Source) -> bool:
        if 'model' in source.recipe():
            return True
        beginnings = ('patch_embed.', 'blocks.', 'layers.', 'stages.', 'embeds.')
        return source.layout in ('flat', 'state_dict') and any(name.startswith(beginnings) for name in source.tensors)

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """Read what a file holds. Its tensors are compared with a model when they are written."""
        tensors = {BACKBONE + name: tensor for name, tensor in source.tensors.items()}
        hints = hints.over(_known(source, hints)[0])
        recipe = None
        if hints.model is not None:
            recipe = Recipe(None, hints.model, hints.img_size, hints.model_kwargs, {})
        return Checkpoint(tensors, None, recipe)

    def write(self, checkpoint: Checkpoint, hints: Hints, path: Path, force: bool) -> Recipe:
        """Write a checkpoint, see `ForeignFormat.write`."""
        tensors = _part(checkpoint.tensors, self.part)
        if not tensors:
            raise ConversionError(
                f'A checkpoint of {checkpoint.method or "an encoder"} contains no {self.name} to write.')
        encoder = Checkpoint(
            {BACKBONE + name: tensor for name, tensor in tensors.items()},
            None,
            None if checkpoint.recipe is None else checkpoint.recipe.encoder(),
        )
        recipe = _checked_recipe(encoder, hints)
        write_file(path, force, write_safetensors(tensors, dict(mim=recipe.as_dict())))
        return recipe


class TargetEncoder(Encoder):
    """The target encoder of I-JEPA, which the paper evaluates, as a plain timm model."""
    name = 'target-encoder'
    holds = 'a plain timm model, the target encoder of I-JEPA'
    part = 'target_encoder.'

    def recognises(self, source: Source) -> bool:
        return False  # a file that contains one is read as `encoder`


def _checked_recipe(checkpoint: Checkpoint, hints: Hints) -> Recipe:
    """Return how to build the module of a checkpoint, after a check that its tensors are those of the checkpoint."""
    tensors, recipe = checkpoint.tensors, checkpoint.recipe
    if recipe is None:
        family = family_of(tensors)
        if family is None or checkpoint.method not in (None, *_METHODS.values()):
            raise ConversionError('The tensors do not determine the model: name it with --model NAME.')
        try:
            recipe = derive_recipe(tensors, checkpoint.method, family, hints, BACKBONE + 'cls_token' in tensors)
        except TensorProblem as error:
            raise ConversionError(
                f'{error.message(error.name)}; if this is another model, name it with --model NAME.') from None
        subject = f'The tensors are not those of {recipe.call()}; if it is another model, name it (--model NAME)'
    else:
        subject = f'The tensors are not those of {recipe.call()}'
    check_tensors(recipe.tensors(), tensors, subject)
    return recipe


def _known(source: Source, given: Hints) -> Tuple[Hints, Optional[str]]:
    """Read the hints and the name of the method from a file in one of our formats.

    Args:
        source: Contents of the file.
        given: Information from the user. Values in the file that it replaces are not read.

    Raises:
        ConversionError: A value in the file does not describe a model or a method.
    """
    recipe, args, config = source.recipe(), source.arguments(), source.config()
    if 'model' in recipe:
        method = method_name(recipe, 'method')
        options = {} if method is None else method_options(recipe.mapping('options'), method, given.options)
        kwargs = _model_kwargs(recipe.mapping('model_kwargs'), recipe, 'model', given)
        return Hints(model_name(recipe, 'model'), recipe.size('img_size'), kwargs, options), method
    if 'mim' in args and 'model' in args:
        method = method_name(args, 'mim')
        return _hints_of_arguments(args, method, given), method
    if 'architecture' in config:  # a folder in the format of timm's models on the hub
        kwargs = _model_kwargs(config.mapping('model_args'), config, 'architecture', given)
        size = kwargs.pop('img_size', None) and config.mapping('model_args').size('img_size')
        return Hints(model_name(config, 'architecture'), size, kwargs), None
    return Hints(), None


def _hints_of_arguments(args: Fields, method: str, given: Hints) -> Hints:
    """Read hints from the arguments of train.py."""
    model_kwargs = _model_kwargs(args.mapping('model_kwargs'), args, 'model', given)
    if args.integer('in_chans') not in (None, 3):
        model_kwargs['in_chans'] = args.integer('in_chans')
    # train.py stores these flags for every method; ignore those that the method does not have
    flags = {name: args.values.get(name) for name in ('mask_ratio', 'mask_unit') if has_option(method, name)}
    options = method_options(Fields(flags, args.where), method, given.options)
    options.update(method_options(args.mapping('mim_kwargs'), method, given.options))
    return Hints(model_name(args, 'model'), args.size('img_size'), model_kwargs, options)


def _model_kwargs(kwargs: Fields, fields: Fields, model: str, given: Hints) -> Dict[str, Any]:
    """Read the arguments of the model that the file names; return none if the user names another model."""
    name = model_name(fields, model)
    if given.model not in (None, name):
        return {}
    return model_arguments(kwargs, name, given.model_kwargs)


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
