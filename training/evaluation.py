"""Evaluation of a model on labelled images."""
import argparse
import logging
from typing import Any, Callable, Dict, Iterable, Optional

import torch
import torch.nn as nn

from .device import Process, to_device

_logger = logging.getLogger(__name__)


@torch.inference_mode()
def evaluate(
        model: nn.Module,
        loader: Iterable,
        evaluator: Any,
        args: argparse.Namespace,
        process: Process,
        name: str = 'Validation',
        log_interval: int = 50,
        after_batch: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
        classes: Optional[torch.Tensor] = None,
) -> Dict[str, float]:
    """Evaluate a model, in all processes together.

    Args:
        model: The model; it is put into eval mode.
        loader: Batches of images and labels.
        evaluator: Evaluator of `timm.task`.
        args: Arguments of the script: prefetcher, channels_last, distributed.
        process: Device and precision.
        name: Name of the reports.
        log_interval: Batches between two reports.
        after_batch: Called with the logits and labels of each batch.
        classes: Numbers of the only classes that are looked at, None for all.

    Returns:
        The metrics of the evaluator.
    """
    model.eval()
    for i, (images, target) in enumerate(loader):
        images, target = to_device(args, process, images, target)
        with process.autocast():
            output = model(images)
        if isinstance(output, (tuple, list)):
            output = output[0]
        if classes is not None:
            output = output[:, classes]
        evaluator.update(output, target)
        if after_batch is not None:
            after_batch(output, target)
        last = i == len(loader) - 1
        if process.primary and (last or i % log_interval == 0):
            _logger.info(f'{name}: [{i + 1:>4d}/{len(loader)}]  {format_metrics(evaluator.summary())}')
    return evaluator.compute(distributed=getattr(args, 'distributed', False))


def format_metrics(metrics: Dict[str, float]) -> str:
    """Write metrics in a line."""
    return '  '.join(f'{name}: {value:.4g}' for name, value in metrics.items())
