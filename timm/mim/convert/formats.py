"""All Formats, and Conversion Between Them"""
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple, Union

from .checkpoint import TARGETS_WITHOUT_A_MODEL, Checkpoint, ConversionError, Hints, Recipe
from .facebook import FacebookIJEPA, FacebookMAE
from .files import Source, read_source
from .huggingface import HuggingFaceSwinMIM, HuggingFaceViTMAE, HuggingFaceViTMIM
from .microsoft import MicrosoftSimMIM
from .ours import Encoder, Method, TargetEncoder, TrainingCheckpoint

__all__ = ['FORMATS', 'Conversion', 'convert']

_FOREIGN = (
    FacebookMAE(), FacebookIJEPA(), MicrosoftSimMIM(), HuggingFaceViTMAE(), HuggingFaceViTMIM(), HuggingFaceSwinMIM())
_OURS = (Method(), TrainingCheckpoint(), Encoder(), TargetEncoder())
FORMATS: Dict[str, Any] = {fmt.name: fmt for fmt in (*_FOREIGN, *_OURS)}


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        source_format: Name of the format that was found.
        dest_format: Name of the format that was written.
        recipe: How to build the module of the tensors in timm.
        notes: What the user should know, a sentence or two each.
    """
    source_format: str
    dest_format: str
    recipe: Recipe
    notes: Tuple[str, ...] = ()


def convert(
        source: Union[str, 'os.PathLike[str]'],
        dest: Union[str, 'os.PathLike[str]'],
        to: Optional[str] = None,
        model: Optional[str] = None,
        img_size: Optional[Tuple[int, int]] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        options: Optional[Mapping[str, Any]] = None,
        ema: bool = False,
        force: bool = False,
) -> Conversion:
    """Convert a checkpoint of masked image modeling.

    Args:
        source: File or folder to read.
        dest: File or folder to write.
        to: Name of the format to write, see `FORMATS`. 'mim' for a source that is not ours, if None.
        model: Name of the timm model, if the tensors do not tell.
        img_size: Image (height, width) in pixels, if the tensors do not tell.
        model_kwargs: Arguments of the model, the number of heads for example.
        options: Options of the method, the number of heads of the decoder for example.
        ema: Read the moving average of a training checkpoint.
        force: Replace a file that exists.

    Raises:
        ConversionError: The source is not understood in full, or the format cannot hold it. Nothing was written.
    """
    source, dest = Path(source), Path(dest)
    hints = Hints(model, img_size, model_kwargs or {}, options or {})
    content = read_source(source, ema)
    found = _detect(content, source)
    target = _target(found, to)
    _check_dest(target, dest)
    checkpoint = found.read(content, hints)
    if checkpoint.method is None and hints.options:
        raise ConversionError(f"'{source}' holds an encoder alone, --mim-kwargs are for a method.")
    recipe = target.write(checkpoint, hints, dest, force)
    return Conversion(found.name, target.name, recipe, tuple(_notes(checkpoint, recipe, found in _FOREIGN)))


def _notes(checkpoint: Checkpoint, recipe: Recipe, is_foreign: bool) -> Iterator[str]:
    """Say what was left out, and what was assumed because the file does not tell."""
    source = checkpoint.recipe or recipe
    target = source.options.get('target', 'pixels') if source.method == 'simmim' else 'pixels'
    if target not in TARGETS_WITHOUT_A_MODEL:
        yield (f'The teacher {target!r} is left out: no checkpoint holds it, and nothing was downloaded. '
               'timm.mim.create_mim gets it with its pretrained weights.')
    is_told = 'norm_pix' in source.options or not (is_foreign or checkpoint.recipe is None)  # our files tell by default
    if recipe.method == 'mae' and not is_told:
        yield ('The file does not tell whether MAE was trained on normalised patches, norm_pix=True is assumed. '
               'Say --mim-kwargs norm_pix=False if it was not.')


def _detect(content: Source, path: Path) -> Any:
    """The format whose names the tensors have."""
    found = [fmt for fmt in (*_FOREIGN, Method(), TrainingCheckpoint()) if fmt.recognises(content)]
    if not found and Encoder().recognises(content):
        found = [Encoder()]
    if len(found) > 1:
        raise ConversionError(f"'{path}' has names of several formats: {', '.join(fmt.name for fmt in found)}.")
    if not found:
        names = ', '.join(list(content.tensors)[:3])
        raise ConversionError(f"'{path}' has names of no known format ({names}, ...), known are {', '.join(FORMATS)}.")
    return found[0]


def _target(found: Any, to: Optional[str]) -> Any:
    if to is None:
        if found in _FOREIGN:
            return FORMATS['mim']
        raise ConversionError(f'{found.name} is our own format: say what it shall become, --to {" or ".join(FORMATS)}.')
    if to not in FORMATS:
        raise ConversionError(f"There is no format '{to}', there is {', '.join(FORMATS)}.")
    return FORMATS[to]


def _check_dest(target: Any, dest: Path) -> None:
    if target.suffixes and not dest.name.endswith(target.suffixes):
        raise ConversionError(
            f"'{dest}': the name of a file in the format {target.name} ends with {' or '.join(target.suffixes)}.")
    if not target.suffixes and (dest.is_file() or dest.suffix in ('.safetensors', '.bin', '.pth', '.pt')):
        raise ConversionError(f"'{dest}': {target.name} is a folder, with config.json and model.safetensors.")
    if target.suffixes and dest.is_dir():
        raise ConversionError(f"'{dest}' is a folder, {target.name} is a file.")
