"""The model that is trained, and the method around it."""
import argparse
import logging
import os
import re
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import torch.nn as nn

from timm.layers import set_fast_norm
from timm.models import create_model, resolve_model_input_args
from ..archive import verify_checksums
from ..factory import create_mim, list_mim_models
from ..model_names import is_known_model, unknown_model
from ..output import MIMUnsupportedError
from ..user_module import import_user_module
from .errors import UserError, flag_name, one_line

_WEIGHT_FILES = ('initial_checkpoint', 'pretrained_path')
# Arguments of `create_mim` that have flags of their own.
_FLAGS_INSTEAD = dict(method='--mim', backbone='--model', img_size='--img-size', model_kwargs='--model-kwargs')


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
    except (OSError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f'--model {options.model}: {one_line(e)}') from None

    backbone = _create_backbone(options, model_args)
    mim_options = dict(options.mim_kwargs)
    for name, flag in _FLAGS_INSTEAD.items():
        if name in mim_options:
            raise UserError(f'--mim-kwargs {name}: give it as {flag}.')
    for name in ('mask_ratio', 'mask_unit'):
        if getattr(options, name) is not None:
            mim_options.setdefault(name, getattr(options, name))
    try:
        method = create_mim(options.mim, backbone, img_size=options.img_size, **mim_options)
    except MIMUnsupportedError as e:
        raise UserError(one_line(e)) from e
    except Exception as e:  # a value of --mim-kwargs that nobody foresaw fails in any way, and so does a teacher's file
        about = '' if isinstance(e, (AssertionError, OSError, RuntimeError, ValueError)) else '--mim-kwargs: '
        raise UserError(about + one_line(e)) from e
    method.lean = True  # nobody looks at predictions of visible patches here
    if options.grad_checkpointing:
        method.set_grad_checkpointing(True)
    rebuild_args = {k: v for k, v in model_args.items() if k not in ('model_name', 'pretrained_cfg')}
    return method, rebuild_args


def _create_backbone(options: argparse.Namespace, model_args: Dict[str, Any]) -> nn.Module:
    for name in _WEIGHT_FILES:
        path = getattr(options, name)
        if path and not os.path.isfile(path):
            raise UserError(f"{flag_name(name)}: there is no file '{path}'.")
        if path and not os.path.getsize(path):
            raise UserError(f"{flag_name(name)}: '{path}' is empty.")
        if path:
            try:
                verify_checksums(path)
            except (OSError, ValueError) as e:
                raise UserError(f'{flag_name(name)}: {one_line(e)}.') from e
    pretrained = dict(pretrained=options.pretrained, checkpoint_path=options.initial_checkpoint)
    if options.pretrained_path:
        pretrained.update(pretrained=True, pretrained_cfg_overlay=dict(file=options.pretrained_path, num_classes=-1))
    build_args = {**model_args, 'num_classes': 0, **pretrained}
    if options.drop_path is not None:
        build_args['drop_path_rate'] = options.drop_path
    if options.fast_norm:
        set_fast_norm()
    try:
        with _noting_missing_weights() as missing:
            model = create_model(**build_args)
    except Exception as e:  # files that hold no weights fail in every way
        files = [
            f" with {flag_name(name)} '{getattr(options, name)}'" for name in _WEIGHT_FILES if getattr(options, name)]
        raise UserError(f'--model {options.model}{"".join(files)} cannot be built: {one_line(e)[:300]}') from e
    if 2 * len(missing) > len(model.state_dict()):
        raise UserError(
            f"--pretrained-path: '{options.pretrained_path}' lacks {len(missing)} of the {len(model.state_dict())} "
            f'weights of {options.model}, {missing[0]} for one: they would be random.')
    return model


@contextmanager
def _noting_missing_weights() -> Iterator[List[str]]:
    """Note the names of weights that pretrained weights lack. timm logs them, and goes on with random ones."""
    missing: List[str] = []

    def note(record: logging.LogRecord) -> bool:
        found = re.match(r'Missing keys \((.*)\) discovered', record.getMessage())
        if found:
            missing.extend(found.group(1).split(', '))
        return True
    logger = logging.getLogger('timm.models._builder')
    level = logger.level
    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        yield missing
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)


def check_model_name(options: argparse.Namespace) -> None:
    """Check that there is a model of the name that the options give.

    Raises:
        UserError: There is none.
    """
    if not is_known_model(options.model):
        models = list_mim_models(options.mim)
        call = f"timm.mim.list_mim_models('{options.mim}')"
        raise UserError(f'--model: {unknown_model(options.model, models, call)}')
