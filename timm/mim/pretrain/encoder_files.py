"""Write the trained encoder to files, and make the commands that load, publish and fine-tune it."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
import torch.nn as nn
from safetensors.torch import save_file

from timm.models._hub import HF_SAFE_WEIGHTS_NAME, save_config_for_hf
from timm.models._model_class import get_model_class
from ..files import write_complete
from .data.datasets import image_mode
from .data.formats import BANDS
from .flags.run_options import RunOptions
from .run_folder import ENCODER

HUB_FOLDER = 'encoder'  # holds the same weights with timm's hub configuration
_HUB_CONFIG = 'config.json'


def save_encoder(
        folder: Path,
        weights: Dict[str, torch.Tensor],
        model: nn.Module,
        data_config: Dict[str, Any],
        tag: str,
) -> None:
    """Write the weights of an encoder to a file, and to a folder that `timm.create_model('local-dir:FOLDER')` loads.

    Each file is written atomically. The weights in the folder are a hard link to the file if the file system supports
    that, and a copy otherwise.

    Args:
        folder: Folder of the run.
        weights: Unsharded weights of the model by name.
        model: Model without a classifier, made by `timm.create_model`.
        data_config: Input size, mean, standard deviation, interpolation and crop of images.
        tag: Tag of the weights in timm's naming, such as `mae` in `vit_base_patch16_224.mae`.

    Raises:
        OSError: A file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_complete(folder / ENCODER, lambda path: save_file(state, str(path), metadata={'format': 'pt'}))
    hub_folder = folder / HUB_FOLDER
    hub_folder.mkdir(exist_ok=True)
    others = ('mode', 'bands', 'patch_size')  # which the configuration of the hub does not have
    preprocessing = {name: value for name, value in data_config.items() if name not in others}
    config = dict(pretrained_cfg=dict(tag=tag))
    write_complete(
        hub_folder / _HUB_CONFIG,
        lambda path: save_config_for_hf(model, str(path), model_config=config, data_config=preprocessing),
    )
    write_complete(hub_folder / HF_SAFE_WEIGHTS_NAME, lambda path: _link_or_copy(folder / ENCODER, path))


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


def loading_lines(path: Path, model: str, model_args: Dict[str, Any]) -> Tuple[str, str]:
    """Return the two lines of Python that load an encoder.

    Args:
        path: File of the encoder.
        model: Name of the model.
        model_args: Arguments with which the model was created.
    """
    arguments = ''.join(f'{name}={value!r}, ' for name, value in model_args.items())
    return (
        'import timm',
        f"encoder = timm.create_model('{model}', num_classes=0, {arguments}checkpoint_path={str(path)!r})",
    )


def hub_lines(folder: Path) -> Tuple[str, str]:
    """Return two lines of Python: one loads an encoder from its folder with the hub configuration, one publishes it.

    Args:
        folder: Folder of the run.
    """
    return (
        f"encoder = timm.create_model({f'local-dir:{folder / HUB_FOLDER}'!r}, pretrained=True)",
        "timm.models.push_to_hf_hub(encoder, 'ACCOUNT/NAME')",
    )


def fine_tuning_command(path: Path, options: RunOptions, model_args: Dict[str, Any]) -> str:
    """Return the command that fine-tunes an encoder with labels.

    Args:
        path: File of the encoder.
        options: Options of the run.
        model_args: Arguments with which the model was created.
    """
    words = ['python', 'train.py', '--data-dir', 'LABELLED_FOLDER', '--model', options.model]
    words += ['--pretrained-path', str(path)]
    if options.exif_rotation:
        words.append('--exif-rotation')
    if image_mode(options.in_chans, options.input_img_mode) == BANDS:  # otherwise these are the model's
        words += ['--input-img-mode', BANDS]
        words += [word for name in ('mean', 'std') for word in (f'--{name}', *map(str, getattr(options, name)))]
    if model_args.get('img_size'):
        words += ['--img-size', *map(str, model_args['img_size'])]
    if options.naflex_loader:
        words += ['--naflex-loader', '--naflex-train-seq-lens', *map(str, options.naflex_train_seq_lens)]
        words += ['--naflex-max-seq-len', str(options.naflex_max_seq_len)]
    if 'in_chans' in model_args:
        words += ['--in-chans', str(model_args['in_chans'])]
    flags = ('img_size', 'in_chans', 'drop_path_rate')  # the command sets its own --drop-path
    arguments = [f'{name}={value}' for name, value in model_args.items() if name not in flags]
    if arguments:
        words += ['--model-kwargs', *arguments]
    return f'{shlex.join(words)} --num-classes N {_fine_tuning_recipe(options)}'


def _fine_tuning_recipe(options: RunOptions) -> str:
    """Return flags for fine-tuning on ImageNet: SparK's optimizer and number of epochs for its models, else MAE's."""
    if options.mim == 'spark' and get_model_class(options.model).__name__ != 'ConvNeXt':
        # LAMB, binary cross-entropy and 300 epochs are SparK's; the other values are A2 of `ResNet strikes back`
        # (https://arxiv.org/abs/2110.00476)
        return ('--opt lamb --lr-base 1.8e-3 --weight-decay 0.02 --bce-loss --drop-path 0.05 --epochs 300 '
                '--warmup-epochs 5 --mixup 0.1 --cutmix 1.0 --aa rand-m7-mstd0.5-inc1')
    if options.mim == 'spark':
        return ('--opt adamw --lr-base 5e-4 --layer-decay 0.8 --weight-decay 0.05 --drop-path 0.2 --epochs 400 '
                '--warmup-epochs 20 --mixup 0.8 --cutmix 1.0 --smoothing 0.1')
    return ('--opt adamw --lr-base 5e-4 --layer-decay 0.65 --weight-decay 0.05 --drop-path 0.1 --epochs 100 '
            '--warmup-epochs 5 --mixup 0.8 --cutmix 1.0 --smoothing 0.1')
