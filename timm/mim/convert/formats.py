"""Table of all formats, and conversion between them."""
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple, Union

from .checkpoint import TARGETS_WITHOUT_A_MODEL, Checkpoint, ConversionError, Hints, Recipe
from .facebook import FacebookIJEPA, FacebookMAE, FacebookPixio
from .fcmae import FCMAE
from .files import Source, read_source
from .huggingface import HuggingFacePixio, HuggingFaceSwinMIM, HuggingFaceViTMAE, HuggingFaceViTMIM
from .microsoft import MicrosoftSimMIM
from .ours import Encoder, Method, TargetEncoder, TrainingCheckpoint
from .spark import SparK

__all__ = ['FORMATS', 'Conversion', 'convert']

_FOREIGN = (
    FacebookMAE(), FacebookPixio(), FacebookIJEPA(), FCMAE(), SparK(), MicrosoftSimMIM(), HuggingFaceViTMAE(),
    HuggingFacePixio(), HuggingFaceViTMIM(), HuggingFaceSwinMIM())
_OURS = (Method(), TrainingCheckpoint(), Encoder(), TargetEncoder())
FORMATS: Dict[str, Any] = {fmt.name: fmt for fmt in (*_FOREIGN, *_OURS)}


class Conversion(NamedTuple):
    """Result of a conversion.

    Attributes:
        source_format: Name of the format that was read.
        dest_format: Name of the format that was written.
        recipe: How to build the module of the tensors in timm.
        notes: Notes for the user, one or two sentences each.
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
        to: Name of the format to write, see `FORMATS`. If None, 'mim' for a source of another project.
        model: Name of the timm model, if the tensors do not determine it.
        img_size: Image (height, width) in pixels, if the tensors do not determine it.
        model_kwargs: Arguments of the model, for example the number of heads.
        options: Options of the method, for example the number of heads of the decoder.
        ema: Read the moving average of a training checkpoint.
        force: Replace an existing file.

    Raises:
        ConversionError: Some part of the source is unknown, or the format cannot hold the model. No file is written.
    """
    source, dest = Path(source), Path(dest)
    hints = Hints(model, img_size, model_kwargs or {}, options or {})
    content = read_source(source, ema)
    found = _detect(content, source)
    target = _target(found, to)
    _check_dest(target, dest)
    checkpoint = found.read(content, hints)
    if checkpoint.method is None and hints.options:
        raise ConversionError(f"'{source}' contains only an encoder; --mim-kwargs are for a method.")
    recipe = target.write(checkpoint, hints, dest, force)
    return Conversion(found.name, target.name, recipe, tuple(_notes(checkpoint, recipe, found in _FOREIGN)))


def _notes(checkpoint: Checkpoint, recipe: Recipe, is_foreign: bool) -> Iterator[str]:
    """Yield a note for each part that was omitted, and for each value that was assumed."""
    source = checkpoint.recipe or recipe
    target = source.options.get('target', 'pixels') if source.method == 'simmim' else 'pixels'
    if target not in TARGETS_WITHOUT_A_MODEL:
        yield (f'The teacher {target!r} is omitted, since checkpoints do not contain it. '
               'timm.mim.create_mim downloads its pretrained weights.')
    # our files record options that differ from the default
    is_known = 'norm_pix' in source.options or not (is_foreign or checkpoint.recipe is None)
    if recipe.method in ('mae', 'fcmae') and not is_known:
        yield (f'The file does not record whether {recipe.method.upper()} was trained on normalised patches; '
               'norm_pix=True is assumed. Give --mim-kwargs norm_pix=False if it was not.')


def _detect(content: Source, path: Path) -> Any:
    """Return the format that the tensor names belong to."""
    found = [fmt for fmt in (*_FOREIGN, Method(), TrainingCheckpoint()) if fmt.recognises(content)]
    if not found and Encoder().recognises(content):
        found = [Encoder()]
    if len(found) > 1:
        raise ConversionError(
            f"'{path}' has tensor names of several formats: {', '.join(fmt.name for fmt in found)}.")
    if not found:
        names = ', '.join(list(content.tensors)[:3])
        raise ConversionError(
            f"'{path}' has tensor names of an unknown format ({names}, ...); known formats are {', '.join(FORMATS)}.")
    return found[0]


def _target(found: Any, to: Optional[str]) -> Any:
    if to is None:
        if found in _FOREIGN:
            return FORMATS['mim']
        raise ConversionError(f'{found.name} is our own format: give the format to write, --to {" or ".join(FORMATS)}.')
    if to not in FORMATS:
        raise ConversionError(f"There is no format '{to}'; the formats are {', '.join(FORMATS)}.")
    return FORMATS[to]


def _check_dest(target: Any, dest: Path) -> None:
    if target.suffixes and not dest.name.endswith(target.suffixes):
        raise ConversionError(
            f"'{dest}': the name of a {target.name} file must end with {' or '.join(target.suffixes)}.")
    if not target.suffixes and (dest.is_file() or dest.suffix in ('.safetensors', '.bin', '.pth', '.pt')):
        raise ConversionError(f"'{dest}': {target.name} needs a folder, for config.json and model.safetensors.")
    if target.suffixes and dest.is_dir():
        raise ConversionError(f"'{dest}' is a folder, but {target.name} is written to a file.")
