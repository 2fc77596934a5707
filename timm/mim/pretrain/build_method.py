"""The model that is trained, and the method around it."""
import argparse
import os
from difflib import get_close_matches
from typing import Any, Dict, Tuple

import torch.nn as nn

from timm.layers import set_fast_norm
from timm.models import create_model, resolve_model_input_args
from ..factory import create_mim, list_mim_models
from ..user_module import import_user_module
from .errors import UserError, flag_name, one_line


def import_mim_module(args: argparse.Namespace) -> None:
    """Import the module of `--mim-module`, which makes methods and models of the user's known.

    Raises:
        UserError: It cannot be imported.
    """
    name = getattr(args, 'mim_module', None)
    try:
        if name:
            import_user_module(name)
    except ImportError as e:
        raise UserError(f'--mim-module {name}: {one_line(e)}') from e


def create_method(options: argparse.Namespace) -> Tuple[nn.Module, Dict[str, Any]]:
    """Build the model and the method around it.

    Args:
        options: Options of the run.

    Returns:
        The method, and the arguments with which `timm.create_model` builds such a model again.

    Raises:
        UserError: There is no such model, the method cannot serve it, or an option does not suit it.
    """
    try:
        model_args = resolve_model_input_args(
            options.model,
            dict(img_size=options.img_size),
            in_chans=options.in_chans if options.in_chans != 3 else None,
            **options.model_kwargs,
        )
    except RuntimeError:
        raise _unknown_model(options) from None
    except (OSError, ValueError) as e:
        raise UserError(f'--model {options.model}: {e}') from None

    backbone = _create_backbone(options, model_args)
    mim_options = dict(options.mim_kwargs)
    for name in ('mask_ratio', 'mask_unit'):
        if getattr(options, name) is not None:
            mim_options.setdefault(name, getattr(options, name))
    try:
        method = create_mim(options.mim, backbone, img_size=options.img_size, **mim_options)
    except (AssertionError, OSError, RuntimeError, ValueError) as e:  # OSError: a teacher that cannot be loaded
        raise UserError(one_line(e)) from e
    method.lean = True  # nobody looks at predictions of visible patches here
    if options.grad_checkpointing:
        method.set_grad_checkpointing(True)
    rebuild_args = {k: v for k, v in model_args.items() if k not in ('model_name', 'pretrained_cfg')}
    return method, rebuild_args


def _create_backbone(options: argparse.Namespace, model_args: Dict[str, Any]) -> nn.Module:
    for name in ('initial_checkpoint', 'pretrained_path'):
        path = getattr(options, name)
        if path and not os.path.isfile(path):
            raise UserError(f"{flag_name(name)}: there is no file '{path}'.")
    pretrained = dict(pretrained=options.pretrained, checkpoint_path=options.initial_checkpoint)
    if options.pretrained_path:
        pretrained.update(pretrained=True, pretrained_cfg_overlay=dict(file=options.pretrained_path, num_classes=-1))
    build_args = {**model_args, 'num_classes': 0, **pretrained}
    if options.drop_path is not None:
        build_args['drop_path_rate'] = options.drop_path
    if options.fast_norm:
        set_fast_norm()
    try:
        return create_model(**build_args)
    except (AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f'--model {options.model} cannot be built: {one_line(e)}') from e


def _unknown_model(options: argparse.Namespace) -> UserError:
    models = list_mim_models(options.mim)
    near = get_close_matches(options.model, models, n=3)
    hint = f'did you mean {", ".join(near)}?' if near else f"timm.mim.list_mim_models('{options.mim}') lists them."
    return UserError(f"--model: there is no model '{options.model}'; {hint}")
