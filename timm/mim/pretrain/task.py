"""Set up training: model, method, precision, optimizer, schedules and the training task."""

import argparse
import logging
import math
import os
import re
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn as nn

from timm.layers import set_fast_norm
from timm.models import create_model, resolve_model_input_args
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import MaskedImageModelingTask
from timm.utils import NativeScaler, is_primary
from ..errors import MIMUnsupportedError
from ..factory import create_mim, import_user_module, is_known_model, list_mim_models, unknown_model
from ..files import verify_checksums
from .blocks import checkpoint_blocks, compile_blocks
from .building import built_in
from .checkpoints import Checkpoint
from .errors import UserError, flag_name, one_line
from .flags.run_options import RunOptions
from .optimizers import JoinedOptimizer, only_training, own_parts
from .processes import settle_buckets
from .resume import restore_weights
from .sharding import shard

_WEIGHT_FILES = ('initial_checkpoint', 'pretrained_path')

# Arguments of `create_mim` that have flags of their own.
_FLAGS_INSTEAD = dict(method='--mim', backbone='--model', img_size='--img-size', model_kwargs='--model-kwargs')


def autocast_of(options: RunOptions, device: torch.device) -> Callable:
    """Return a function that creates the autocast context of a forward pass; without --amp the context does nothing.
    """
    if not options.amp:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, options.amp_dtype))


def scaler_of(options: RunOptions, device: torch.device) -> Optional[NativeScaler]:
    """Return the gradient scaler for float16, None for other types: bfloat16 has the range of float32."""
    return NativeScaler(device=device.type) if options.amp and options.amp_dtype == 'float16' else None


def import_mim_module(args: argparse.Namespace) -> None:
    """Import the module of `--mim-module`, which registers the user's methods and models.

    Raises:
        UserError: The module cannot be imported.
    """
    name = getattr(args, 'mim_module', None)
    try:
        if name:
            import_user_module(name)
    except ImportError as e:
        raise UserError(f'--mim-module {name}: {one_line(e)}') from e


def create_method(options: RunOptions) -> Tuple[nn.Module, Dict[str, Any]]:
    """Create the model and the method around it.

    Args:
        options: Options of the run.

    Returns:
        The method, and the arguments with which `timm.create_model` creates the same model again.

    Raises:
        UserError: There is no such model, the method does not support it, or an option does not fit it.
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

    backbone, keys = _create_backbone(options, model_args)
    mim_options = dict(options.mim_kwargs)
    for name, flag in _FLAGS_INSTEAD.items():
        if name in mim_options:
            raise UserError(f'--mim-kwargs {name}: use {flag} instead.')
    for name in ('mask_ratio', 'mask_unit'):
        if getattr(options, name) is not None:
            mim_options.setdefault(name, getattr(options, name))
    try:
        method = create_mim(options.mim, backbone, img_size=options.img_size, **mim_options)
    except MIMUnsupportedError as e:
        raise UserError(one_line(e)) from e
    except Exception as e:  # bad values of --mim-kwargs and bad teacher files raise errors of any type
        about = '' if isinstance(e, (AssertionError, OSError, RuntimeError, ValueError)) else '--mim-kwargs: '
        raise UserError(about + one_line(e)) from e
    _check_loaded(options, backbone, keys)
    if options.naflex_loader:
        try:
            method.check_naflex()
        except MIMUnsupportedError as e:
            raise UserError(f'--naflex-loader: {one_line(e)}') from e
    method.fast_path = True  # training does not use predictions for visible patches
    if options.grad_checkpointing:
        method.set_grad_checkpointing(True)
    elif options.grad_checkpointing_every:
        checkpoint_blocks(method, options.grad_checkpointing_every)
    rebuild_args = {k: v for k, v in model_args.items() if k not in ('model_name', 'pretrained_cfg')}
    return method, rebuild_args


class _Keys(NamedTuple):
    """Names of weights that a file of pretrained weights lacks, and of those that the model lacks."""
    missing: List[str]
    unexpected: List[str]


def _create_backbone(options: RunOptions, model_args: Dict[str, Any]) -> Tuple[nn.Module, _Keys]:
    """Create the model with its weights, and return the names that did not match."""
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
        with _noting_keys() as keys:
            model = create_model(**build_args)
    except Exception as e:  # files without weights raise errors of many types
        files = [
            f" with {flag_name(name)} '{getattr(options, name)}'" for name in _WEIGHT_FILES if getattr(options, name)]
        raise UserError(f'--model {options.model}{"".join(files)} cannot be built: {one_line(e)[:300]}') from e
    return model, keys


def _check_loaded(options: RunOptions, backbone: nn.Module, keys: _Keys) -> None:
    """Check that pretrained weights are those of the model, and that no part that is trained begins at random.

    Weights that the method does not train, such as those of a classifier's norm, may be missing.

    Raises:
        UserError: The weights fit only a part of the model, or are of a larger one.
    """
    source = f"--pretrained-path: '{options.pretrained_path}'" if options.pretrained_path else '--pretrained: the file'
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    missing = [name for name in keys.missing if name in trained]
    if missing:
        raise UserError(
            f'{source} lacks {len(missing)} of the {len(trained)} weights of {options.model} that are trained, for '
            f'example {missing[0]}: these would stay random.')
    patterns = {re.sub(r'\d+', '#', name) for name in backbone.state_dict()}
    further = [name for name in keys.unexpected if re.sub(r'\d+', '#', name) in patterns]
    if further and options.pretrained_path:
        raise UserError(
            f'{source} has {len(further)} weights more than {options.model}, for example {further[0]}: it is of a '
            'larger model.')


@contextmanager
def _noting_keys() -> Iterator[_Keys]:
    """Collect the names of weights that do not match a file of pretrained weights. timm only logs them."""
    keys = _Keys([], [])

    def note(record: logging.LogRecord) -> bool:
        for kind, names in (('Missing', keys.missing), ('Unexpected', keys.unexpected)):
            found = re.match(rf'{kind} keys \((.*)\) ', record.getMessage())
            if found:
                names.extend(found.group(1).split(', '))
        return True
    logger = logging.getLogger('timm.models._builder')
    level = logger.level
    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        yield keys
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)


def check_model_name(options: RunOptions) -> None:
    """Check that timm has the model that the options name.

    Raises:
        UserError: There is no such model.
    """
    if not is_known_model(options.model):
        models = list_mim_models(options.mim)
        call = f"timm.mim.list_mim_models('{options.mim}')"
        raise UserError(f'--model: {unknown_model(options.model, models, call)}')


def create_optimizer(
        method: nn.Module,
        options: RunOptions,
        learning_rate: float,
        device: torch.device,
) -> torch.optim.Optimizer:
    """Create the optimizer. It is fused where PyTorch supports that: faster, and it skips a step without the host.

    If some parameters of the method have optimizers of their own, the result is a `JoinedOptimizer`.

    Args:
        method: Method, whose parameters that require a gradient are optimized.
        options: Options of the run.
        learning_rate: Peak learning rate of the schedule.
        device: Device of the parameters.

    Raises:
        UserError: An option does not fit the optimizer.
    """
    parts = own_parts(method, options)
    with only_training(method, parts):
        optimizer = _create_single_optimizer(method, options, learning_rate, device)
    if not parts:
        return optimizer
    own = [
        (_create_single_optimizer(part.parameters, part.options, learning_rate * part.lr_scale, device), part.options)
        for part in parts]
    return JoinedOptimizer([(optimizer, options), *own])


def _create_single_optimizer(
        parameters: Union[nn.Module, List[nn.Parameter]],
        options: RunOptions,
        learning_rate: float,
        device: torch.device,
) -> torch.optim.Optimizer:
    config = optimizer_kwargs(argparse.Namespace(**{**vars(options), 'lr': learning_rate}))
    chosen = options.opt_kwargs
    can_fuse = options.opt.lower() in ('adam', 'adamw') and device.type in ('cpu', 'cuda')
    if can_fuse and not {'fused', 'foreach', 'capturable', 'differentiable'} & chosen.keys():
        try:
            return create_optimizer_v2(parameters, **config, **chosen, fused=True)
        except Exception:  # PyTorch has no fused version here, or the user made a mistake: then the next call fails too
            pass
    try:
        return create_optimizer_v2(parameters, **config, **chosen)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f'--opt {options.opt}: {one_line(e)}') from e


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the tensors in the state of an optimizer, such as moments and step counts."""
    yield from _tensors(list(optimizer.state.values()))


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


class Schedules:
    """Steps the learning rate and the weight decay at every update, as in the published recipes.

    Attributes:
        num_epochs: Number of epochs of the learning rate schedule, including warm-up and cool-down. A part of the
            parameters with a schedule of its own does not change it.

    Args:
        optimizer: Optimizer, or several that are joined.
        options: Options of the run.
        updates_per_epoch: Number of updates in an epoch.

    Raises:
        UserError: An option does not fit the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: RunOptions, updates_per_epoch: int):
        self.learning_rates, self.weight_decays = [], []
        for member, own in getattr(optimizer, 'members', [(optimizer, options)]):
            scheduler, num_epochs = _create_scheduler(member, own, updates_per_epoch)
            self.learning_rates.append(scheduler)
            if len(self.learning_rates) == 1:
                self.num_epochs = num_epochs
            self.weight_decays.append(
                WeightDecaySchedule(member, own.weight_decay_end, self.num_epochs * updates_per_epoch))

    def step(self, update: int) -> None:
        """Set learning rate and weight decay for the next update.

        Args:
            update: Number of updates done.
        """
        for scheduler in self.learning_rates:
            if scheduler is not None:
                scheduler.step_update(update)
        for weight_decay in self.weight_decays:
            weight_decay.step(update)


def _create_scheduler(
        optimizer: torch.optim.Optimizer,
        options: RunOptions,
        updates_per_epoch: int,
) -> Tuple[Optional[Any], int]:
    """Create timm's learning rate scheduler, None with `--sched none`, and return it with its number of epochs."""
    arguments = {**scheduler_kwargs(options, decreasing_metric=True), 'step_on_epochs': False}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        return create_scheduler_v2(optimizer, **arguments, updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError) as e:
        raise UserError(f'--sched {options.sched}: {one_line(e)}') from e


class WeightDecaySchedule:
    """Changes the weight decay along half a cosine, as in I-JEPA and DINO, in parameter groups whose decay is above 0.

    Args:
        optimizer: Optimizer.
        end: Weight decay at the end of the run, None to keep it constant.
        num_updates: Number of updates of the whole run.

    Raises:
        UserError: No parameter group has a weight decay above 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, end: Optional[float], num_updates: int):
        self.end = end
        self.num_updates = num_updates
        self.groups = [] if end is None else [group for group in optimizer.param_groups if group['weight_decay'] > 0]
        if end and not self.groups:
            raise UserError(f'--weight-decay-end {end:g} needs a --weight-decay above 0 to begin from.')
        for group in self.groups:
            group.setdefault('initial_weight_decay', group['weight_decay'])

    def step(self, update: int) -> None:
        """Set the weight decay for the next update."""
        share = (1 - math.cos(math.pi * min(1., update / self.num_updates))) / 2
        for group in self.groups:
            start = group['initial_weight_decay']
            group['weight_decay'] = start + (self.end - start) * share


def create_task(
        options: RunOptions,
        method: nn.Module,
        process: argparse.Namespace,
        checkpoint: Optional[Checkpoint] = None,
) -> MaskedImageModelingTask:
    """Create the training task, set up its moving average, load the checkpoint, and compile and shard with --fsdp.

    Args:
        options: Options of the run.
        method: Masked image modeling method, on its device.
        process: Device and rank of this process.
        checkpoint: Checkpoint to resume from.

    Raises:
        UserError: The checkpoint does not fit the method, or there is no such backend.
    """
    device = torch.device(process.device)
    if options.channels_last:
        method = method.to(memory_format=torch.channels_last)
    task = MaskedImageModelingTask(method, device=device, verbose=is_primary(process))
    if options.model_ema:
        with built_in(options.fsdp_build_dir):
            task.setup_ema(
                decay=options.model_ema_decay,
                use_warmup=options.model_ema_warmup,
                foreach=not options.fsdp,  # one operation cannot mix sharded parameters with unsharded buffers
            )
    in_shards = options.fsdp and checkpoint is not None and checkpoint.path.is_dir()
    if checkpoint is not None and not in_shards:
        restore_weights(task, checkpoint)
    if options.fsdp:
        if options.torchcompile:
            with _named_backend(options):
                compile_blocks(task.get_method(), options.torchcompile, options.torchcompile_mode)
        for ema in (False, True) if task.has_ema() else (False,):
            shard(
                task.get_method(ema=ema),
                device,
                replicas=options.fsdp_replicas,
                reshard=options.fsdp_reshard == 'always',
                param_dtype=options.fsdp_param_dtype and getattr(torch, options.fsdp_param_dtype),
                reduce_dtype=getattr(torch, options.fsdp_reduce_dtype),
            )
    if in_shards:  # each process reads its own part
        restore_weights(task, checkpoint)
    return task


def compile_and_distribute(
        task: MaskedImageModelingTask,
        options: RunOptions,
        process: argparse.Namespace,
) -> None:
    """Compile the method and wrap it in DistributedDataParallel, unless it is sharded and has compiled blocks.

    Args:
        task: Training task. Create the optimizer first: it reads parameter names, which the wrappers change.
        options: Options of the run.
        process: Device and rank of this process.

    Raises:
        UserError: There is no such backend.
    """
    if options.fsdp:
        return
    if options.torchcompile:
        with _named_backend(options):
            task.compile(backend=options.torchcompile, mode=options.torchcompile_mode)
    if process.distributed:
        device = torch.device(process.device)
        task.prepare_distributed(
            device_ids=None if device.type == 'cpu' else [device],
            **(dict(broadcast_buffers=False) if options.no_ddp_bb else {}),
        )
        settle_buckets(task.trainable_module)


@contextmanager
def _named_backend(options: RunOptions) -> Iterator[None]:
    """Name the option if `torch.compile` does not know its backend or mode."""
    try:
        yield
    except RuntimeError as e:
        raise UserError(f'--torchcompile {options.torchcompile}: {one_line(e)}') from e
