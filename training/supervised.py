"""Run supervised training from start to end."""
import argparse
import json
import logging
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
import yaml
from torch.optim import Optimizer

from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import distribute_bn
from . import device, model as models
from .datasets import check_source, resolve_image_config
from .definitions import flags
from .device import Process
from .epoch import Epoch
from .errors import MISFITS, UserError, user_errors
from .flags import create_parser
from .evaluation import evaluate
from .loaders import Loaders, create_loaders
from .objective import create_task
from .run_folder import RunFolder, find_checkpoint
from .schedule import create_schedule, resolve_learning_rate, start_schedule

_logger = logging.getLogger(__name__)


def run(args: argparse.Namespace, args_text: str, create_model: Callable[..., nn.Module]) -> None:
    """Train a model on labelled images.

    Args:
        args: Arguments, resolved by `training.arguments.resolve`.
        args_text: The same arguments as YAML, for args.yaml.
        create_model: `timm.create_model`, or a replacement.

    Raises:
        UserError: An argument is invalid, or names a file, a dataset or a model that does not exist.
    """
    if args.data_dir or args.dataset:
        check_source(args.dataset, args.data_dir)
    args.prefetcher = not args.no_prefetcher
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    checkpoint = find_checkpoint(args)
    process = device.set_up(args)
    try:
        _train(args, args_text, create_model, process, checkpoint)
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()


def _train(
        args: argparse.Namespace,
        args_text: str,
        create_model: Callable[..., nn.Module],
        process: Process,
        checkpoint: str,
) -> None:
    model = models.create(args, create_model)
    data_config = resolve_image_config(args, model, verbose=process.primary)
    model = models.prepare(args, model, process)
    given = (args.mean, args.std)
    loaders = create_loaders(args, model, data_config, process, parser_defaults())
    if (args.mean, args.std) != given:  # measured, which every later run needs to know
        args_text = yaml.safe_dump({**yaml.safe_load(args_text), 'mean': args.mean, 'std': args.std})
    resolve_learning_rate(args, loaders.average_batch_size, process.primary)
    with user_errors('--kd-model-name' if args.kd_model_name else '--task', *MISFITS):
        task = create_task(args, model, process.device, process.dtype, process.primary)
    metric = _resolve_metric(args, task, loaders)
    optimizer = _create_optimizer(args, task, process.primary)
    resumed_epoch = _prepare_task(args, task, optimizer, process, checkpoint)

    epoch = Epoch(args, task, loaders, optimizer, None, process)
    scheduler, num_epochs, stop_epoch = create_schedule(args, optimizer, epoch.num_updates, metric == 'loss')
    start_epoch = args.start_epoch if args.start_epoch is not None else resumed_epoch or 0
    start_schedule(scheduler, start_epoch, epoch.num_updates, args.sched_on_updates)
    epoch.scheduler = scheduler

    folder = None
    if process.primary:
        folder = RunFolder(
            args, args_text, task, optimizer, process, data_config['input_size'][-1], lower_is_better=metric == 'loss')
        folder.begin(checkpoint, start_epoch)
        epoch.folder, epoch.save_recovery = folder.path, folder.save_recovery
        _logger.info(f'{num_epochs} epochs, from {start_epoch} to {stop_epoch}, results in {folder.path}.')
    _train_epochs(range(start_epoch, stop_epoch), epoch, metric, folder)


def parser_defaults() -> Dict[str, Any]:
    """Return the defaults of all flags of `train.py` by name."""
    return {name: action.default for name, action in flags.flags_of(create_parser()).items()}


def _resolve_metric(args: argparse.Namespace, task: TrainingTask, loaders: Loaders) -> str:
    """Return the metric that ranks epochs: --eval-metric, or the training loss for a run without validation."""
    if loaders.validation is None:
        return 'loss'
    evaluator = task.create_evaluator()
    metric = args.eval_metric or evaluator.default_metric
    if metric not in evaluator.metric_names:
        raise UserError(f"--eval-metric: choose {', '.join(evaluator.metric_names)}, not '{metric}'.")
    return metric


def _create_optimizer(args: argparse.Namespace, task: TrainingTask, primary: bool) -> Optimizer:
    with user_errors(f'--opt {args.opt}', AssertionError, TypeError, ValueError):
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    if primary:
        settings = {**optimizer.defaults, 'weight_decay': args.weight_decay}  # timm keeps decay in the groups
        _logger.info(f"{args.opt}: {', '.join(f'{k} {v}' for k, v in settings.items())}")
    return optimizer


def _prepare_task(
        args: argparse.Namespace,
        task: TrainingTask,
        optimizer: Optimizer,
        process: Process,
        checkpoint: str,
) -> Optional[int]:
    """Load the checkpoint, then set up the moving average, compilation and distribution. Each needs the ones before.

    Returns:
        The epoch after that of the checkpoint, None without a checkpoint.
    """
    resumed_epoch = None
    if checkpoint:
        with user_errors(f'--resume {checkpoint}', KeyError, RuntimeError, ValueError):
            resumed_epoch = resume_task_checkpoint(
                task,
                checkpoint,
                optimizer=None if args.no_resume_opt else optimizer,
                loss_scaler=None if args.no_resume_opt else process.scaler,
                log_info=process.primary,
            )
    if args.model_ema:
        on = torch.device('cpu') if args.model_ema_force_cpu else None
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=on)
        if checkpoint:
            load_task_ema_checkpoint(task, checkpoint)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        devices = None if process.device.type == 'cpu' else [process.device]
        task.prepare_distributed(device_ids=devices, broadcast_buffers=not args.no_ddp_bb)
    return resumed_epoch


def _train_epochs(epochs: range, epoch: Epoch, metric: str, folder: Optional[RunFolder]) -> None:
    args, process = epoch.args, epoch.process
    best, results = (None, None), []
    try:
        for i in epochs:
            train_metrics = epoch.train(i)
            _share_batch_norm(args, epoch.task.get_trainable_module())
            done = i + 1
            if done % args.val_interval and done != epochs.stop and done not in (args.save_epochs or []):
                _step_schedule(epoch.scheduler, done, None)
                continue
            metrics = _evaluate(epoch)
            latest = (metrics or train_metrics)[metric]
            if folder is not None:
                best = folder.save(i, train_metrics, metrics, latest)
            _step_schedule(epoch.scheduler, done, latest)
            results.append(dict(epoch=i, train=train_metrics, **(dict(validation=metrics) if metrics else {})))
    except KeyboardInterrupt:
        _logger.info('Interrupted.')
    if process.primary:
        _conclude(metric, best, results)


def _share_batch_norm(args: argparse.Namespace, module: nn.Module) -> None:
    """Give all processes the same running statistics of batch norms, if --dist-bn asks for it."""
    if args.distributed and args.dist_bn in ('broadcast', 'reduce'):
        distribute_bn(module, args.world_size, args.dist_bn == 'reduce')


def _step_schedule(scheduler: Any, epoch: int, metric: Optional[float]) -> None:
    if scheduler is not None:
        scheduler.step(epoch, metric)


def _evaluate(epoch: Epoch) -> Optional[Dict[str, float]]:
    """Evaluate the model, and then its moving average if there is one. Return the metrics of the last of the two."""
    args, task, loader = epoch.args, epoch.task, epoch.loaders.validation
    if loader is None:
        return None

    def run(model: nn.Module, name: str) -> Dict[str, float]:
        evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
        return evaluate(model, loader, evaluator, args, epoch.process, name, args.log_interval)

    metrics = run(task.get_eval_model(), 'Validation')
    if task.has_ema() and not args.model_ema_force_cpu:
        _share_batch_norm(args, task.get_trainable_module(ema=True))
        metrics = run(task.get_eval_model(ema=True), 'Validation of the moving average')
    return metrics


def _conclude(metric: str, best: Tuple[Optional[float], Optional[int]], results: List[Dict[str, Any]]) -> None:
    """Log the best epoch, and print the ten best epochs as JSON for other programs to read."""
    if best[0] is not None:
        _logger.info(f'Best {metric}: {best[0]:.4g} in epoch {best[1]}')
    ranked = sorted(
        results, key=lambda r: r.get('validation', r['train']).get(metric, 0), reverse=metric == 'loss')
    print(f'--result\n{json.dumps(ranked[-10:], indent=4)}')
