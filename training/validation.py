"""Evaluate one model, with published weights or a checkpoint."""
import argparse
import logging
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

import torch
import torch.nn as nn

from timm.data import RealLabelsImagenet, create_loader, create_naflex_loader
from timm.layers import apply_test_time_pool
from timm.mim.pretrain.processes import default_device, describe_device, speed_up_cuda
from timm.models import load_checkpoint, reparameterize_model
from timm.task.evaluator import ClassificationEvaluator, MultiLabelClassificationEvaluator
from timm.utils import random_seed
from . import model as models
from .arguments import check_labels, check_precision
from timm.mim.pretrain.data.formats import BANDS
from . import bands
from .datasets import image_mode, open_dataset, patch_size_of, resolve_image_config
from .device import Process, precision, set_fused_operations
from .errors import MISFITS, UserError, user_errors
from .evaluation import evaluate, format_metrics

_logger = logging.getLogger(__name__)


def validate(args: argparse.Namespace, create_model: Callable[..., nn.Module]) -> Dict[str, Any]:
    """Evaluate one model.

    Args:
        args: Arguments of the script.
        create_model: `timm.create_model`, or a replacement.

    Returns:
        Name, metrics in percent, millions of parameters, size and preprocessing of the images.

    Raises:
        UserError: An argument is invalid, or names a file, a dataset or a model that does not exist.
    """
    args.prefetcher = not args.no_prefetcher
    args.pretrained = args.pretrained or not args.checkpoint
    process = _set_up(args)
    model = _create_model(args, create_model)
    num_parameters = sum(p.numel() for p in model.parameters())
    data_config = resolve_image_config(args, model, use_test_size=not args.use_train_size, verbose=True)
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        data_config['crop_pct'] = 1. if pooled else data_config['crop_pct']
    patch_size = patch_size_of(model)
    mode = image_mode(args, data_config)
    if mode == BANDS:
        bands.prepare(args, {})
        data_config.update(bands.statistics(args, model, data_config['input_size'][0]))
    model = _prepare(args, model, process)
    dataset = open_dataset(
        args,
        args.data or args.data_dir,
        args.split,
        mode,
        num_samples=args.num_samples,
        seed=args.seed,
        load_bytes=args.tf_preprocessing,
    )
    loader = _create_loader(args, dataset, data_config, patch_size, process)
    if mode == BANDS:
        bands.use_band_transforms(data_config, loader)
    metrics = _evaluate(args, model, loader, dataset, process)
    _logger.info(format_metrics(metrics))
    return OrderedDict(
        model=args.model,
        **metrics,
        param_count=round(num_parameters / 1e6, 2),
        img_size=data_config['input_size'][-1],
        crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'],
    )


def _set_up(args: argparse.Namespace) -> Process:
    check_precision(args)
    check_labels(args)
    if args.task == 'multilabel' and (args.real_labels or args.metrics_avg):
        raise UserError('--real-labels and --metrics-avg do not work with --task multilabel.')
    speed_up_cuda()
    chosen = args.device is not None
    args.device = args.device or default_device()
    with user_errors(f'--device {args.device}', RuntimeError):
        process = precision(args, torch.device(args.device))
    _logger.info(describe_device(process.device, chosen))
    random_seed(args.seed)
    set_fused_operations(args)
    return process


def _create_model(args: argparse.Namespace, create_model: Callable[..., nn.Module]) -> nn.Module:
    """Create the model with its weights, and set `num_classes` in the arguments."""
    model = models.build(args, create_model, f'--model {args.model}', {}, pretrained=args.pretrained)
    if args.checkpoint:
        with user_errors(f'--checkpoint {args.checkpoint}', *MISFITS):
            load_checkpoint(model, args.checkpoint, args.use_ema)
    return reparameterize_model(model) if args.reparam else model


def _prepare(args: argparse.Namespace, model: nn.Module, process: Process) -> nn.Module:
    layout = torch.channels_last if args.channels_last else torch.preserve_format
    with user_errors(f'--device {args.device}', AssertionError, RuntimeError):
        model = _compiled(args, model.to(process.device, process.dtype, memory_format=layout))
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


def _compiled(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    if args.torchcompile:
        torch.compiler.reset()  # forget the previous model
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        from functorch.compile import memory_efficient_fusion
        return memory_efficient_fusion(model)
    return torch.jit.script(model) if args.torchscript else model


def _create_loader(
        args: argparse.Namespace,
        dataset,
        data_config: Dict[str, Any],
        patch_size: Tuple[int, int],
        process: Process,
) -> Iterable:
    common = dict(
        device=process.device,
        img_dtype=process.dtype,
        batch_size=args.batch_size,
        num_workers=args.workers,
        pin_memory=args.pin_mem,
        use_prefetcher=args.prefetcher,
        crop_border_pixels=args.crop_border_pixels,
        **{name: data_config[name] for name in ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
    )
    if args.naflex_loader:
        return create_naflex_loader(
            dataset,
            patch_size=patch_size,
            max_seq_len=args.naflex_max_seq_len,
            channels=data_config['input_size'][0],
            **common,
        )
    return create_loader(
        dataset, input_size=data_config['input_size'], tf_preprocessing=args.tf_preprocessing, **common)


def _evaluate(
        args: argparse.Namespace,
        model: nn.Module,
        loader: Iterable,
        dataset,
        process: Process,
) -> Dict[str, float]:
    if args.task == 'multilabel':
        evaluator = MultiLabelClassificationEvaluator(process.device, threshold=args.multilabel_threshold)
        return _rounded(evaluate(model, loader, evaluator, args, process, 'Test', args.log_freq))

    real_labels = None
    if args.real_labels:
        real_labels = RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels)
    predictions = _Predictions() if args.metrics_avg else None

    def after_batch(output: torch.Tensor, target: torch.Tensor) -> None:
        if real_labels is not None:
            real_labels.add_result(output)
        if predictions is not None:
            predictions.add_result(output, target)

    metrics = evaluate(
        model, loader, ClassificationEvaluator(process.device), args, process, 'Test', args.log_freq,
        after_batch=after_batch, classes=_valid_labels(args, process.device))
    if real_labels is not None:
        metrics.update(top1=real_labels.get_accuracy(k=1), top5=real_labels.get_accuracy(k=5))
    results = OrderedDict()
    for name in ('top1', 'top5'):
        results[name], results[f'{name}_err'] = metrics[name], 100 - metrics[name]
    if predictions is not None:
        results.update(predictions.averages(args.metrics_avg))
    return _rounded(results)


def _rounded(metrics: Dict[str, float]) -> Dict[str, float]:
    return OrderedDict((name, round(value, 4)) for name, value in metrics.items())


def _valid_labels(args: argparse.Namespace, device: torch.device) -> Optional[torch.Tensor]:
    if not args.valid_labels:
        return None
    with user_errors(f'--valid-labels {args.valid_labels}', OSError, ValueError):
        with open(args.valid_labels) as f:
            return torch.tensor([int(line) for line in f], device=device)


class _Predictions:
    """Collects predictions, and computes precision, recall and F1 with scikit-learn."""

    def __init__(self):
        with user_errors('--metrics-avg needs scikit-learn', ImportError):
            import sklearn.metrics
        self.score = sklearn.metrics.precision_recall_fscore_support
        self.predicted, self.targets = [], []

    def add_result(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.predicted.append(output.argmax(dim=1).cpu())
        self.targets.append(target.cpu())

    def averages(self, how: str) -> Dict[str, float]:
        targets, predicted = torch.cat(self.targets).numpy(), torch.cat(self.predicted).numpy()
        scores = self.score(targets, predicted, average=how, zero_division=0)[:3]
        return {f'{how}_{name}': 100 * float(score) for name, score in zip(('precision', 'recall', 'f1_score'), scores)}
