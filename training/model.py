"""The model that a run trains."""
import argparse
import logging
from typing import Any, Callable, Dict

import torch
import torch.nn as nn

from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.mim.factory import is_known_model, unknown_model
from timm.models import resolve_model_input_args
from .device import Process
from .errors import MISFITS, UserError, user_errors

_logger = logging.getLogger(__name__)


def create(args: argparse.Namespace, create_model: Callable[..., nn.Module]) -> nn.Module:
    """Create the model with its initial weights, and set `num_classes` in the arguments.

    Args:
        args: Arguments of the run.
        create_model: `timm.create_model`, or what stands in for it.

    Raises:
        UserError: There is no such model, or its arguments or weights do not fit.
    """
    files = [f'--{name} {getattr(args, name.replace("-", "_"))}' for name in ('pretrained-path', 'initial-checkpoint')
             if getattr(args, name.replace('-', '_'))]
    architecture = dict(
        pretrained_cfg_overlay=_pretrained_cfg_overlay(args),
        drop_block_rate=args.drop_block,
        drop_path_rate=args.drop_path,
        drop_rate=args.drop,
        bn_eps=args.bn_eps,
        bn_momentum=args.bn_momentum,
    )
    model = build(
        args,
        create_model,
        ' '.join([f'--model {args.model}', *files]),
        architecture,
        pretrained=args.pretrained or bool(args.pretrained_path),
        checkpoint_path=args.initial_checkpoint,
    )
    _initialise_head(args, model)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


def build(
        args: argparse.Namespace,
        create_model: Callable[..., nn.Module],
        about: str,
        architecture: Dict[str, Any],
        **weights: Any,
) -> nn.Module:
    """Build the model that the arguments name, and set `num_classes` in them.

    Args:
        args: Arguments of the script.
        create_model: `timm.create_model`, or what stands in for it.
        about: Flags to name where it cannot be built.
        architecture: Arguments of the model besides its input size, pooling and --model-kwargs.
        **weights: Arguments of `create_model` for its weights.

    Raises:
        UserError: There is no such model, or its arguments or weights do not fit.
    """
    check_name('--model', args.model)
    architecture = dict(architecture, global_pool=args.gp)  # what is None here --model-kwargs may say
    with user_errors(about, *MISFITS):
        arguments = resolve_model_input_args(
            args.model,
            dict(img_size=args.img_size, in_chans=args.in_chans, input_size=args.input_size),
            **{name: value for name, value in architecture.items() if value is not None},
            **args.model_kwargs,
        )
        num_classes = arguments.get('num_classes') if args.num_classes is None else args.num_classes
        model = create_model(**{
            **arguments, 'num_classes': num_classes, 'scriptable': args.torchscript, **weights})
    if args.num_classes is None:
        if not hasattr(model, 'num_classes'):
            raise UserError(f'--model {args.model} does not say how many classes it has: give --num-classes.')
        args.num_classes = model.num_classes
    return model


def check_name(flag: str, name: str) -> None:
    """Check that there is a model of this name.

    Raises:
        UserError: There is none; the message offers the nearest names.
    """
    if not is_known_model(name):
        raise UserError(f'{flag}: {unknown_model(name)}')


def _pretrained_cfg_overlay(args: argparse.Namespace) -> Dict[str, Any]:
    overlay = {}
    if args.pretrained_path:
        overlay = dict(file=args.pretrained_path, num_classes=-1)  # -1: whatever the head there is, ours is new
    return {**overlay, **args.pretrained_cfg_overlay}


def _initialise_head(args: argparse.Namespace, model: nn.Module) -> None:
    if args.head_init_scale is None and args.head_init_bias is None:
        return
    head = model.get_classifier()
    with torch.no_grad(), user_errors('--head-init-bias: the classifier has none', AttributeError):
        if args.head_init_scale is not None:
            for parameter in head.parameters():
                parameter.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            head.bias.fill_(args.head_init_bias)


def prepare(args: argparse.Namespace, model: nn.Module, process: Process) -> nn.Module:
    """Convert the model as the arguments say, and move it to its device."""
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=process.device, dtype=process.dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        if process.device.type == 'cpu':
            raise UserError('--sync-bn works on GPUs only.')
        args.dist_bn = ''  # the statistics are the same everywhere already
        model = convert_sync_batchnorm(model)
    if args.torchscript:
        model = torch.jit.script(model)
    if process.primary:
        _logger.info(f'{args.model} has {sum(p.numel() for p in model.parameters()):,} parameters.')
    return model
