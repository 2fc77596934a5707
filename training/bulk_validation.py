"""Evaluate several models or checkpoints, and write the results to a file."""
import argparse
import csv
import glob
import json
import logging
import os
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Tuple, Union

import torch

from timm.models import is_model, list_models
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key
from .errors import UserError

_logger = logging.getLogger(__name__)

# Published weights whose classifier is not for ImageNet-1k.
_OTHER_CLASSES = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


def validate_all(
        args: argparse.Namespace,
        validate: Callable[[argparse.Namespace], Dict[str, Any]],
) -> Union[Dict[str, Any], List[Dict[str, Any]]]:
    """Evaluate all models or checkpoints that the arguments name.

    Returns:
        The results of one model, or if the arguments name a group, a list of results with the best one first.
    """
    several = _models_and_checkpoints(args)
    if not several:
        return _retry(args, validate) if args.retry else validate(args)
    _logger.info(f"Evaluating {len(several)}: {', '.join(checkpoint or model for model, checkpoint in several)}")
    results, batch_size = [], args.batch_size
    try:
        for args.model, args.checkpoint in several:
            args.batch_size = batch_size
            result = _retry(args, validate)
            if 'error' not in result:
                results.append({**result, **(dict(checkpoint=args.checkpoint) if args.checkpoint else {})})
    except KeyboardInterrupt:
        _logger.info('Interrupted.')
    metric = 'map' if args.task == 'multilabel' else 'top1'
    return sorted(results, key=lambda result: result[metric], reverse=True)


def _models_and_checkpoints(args: argparse.Namespace) -> List[Tuple[str, str]]:
    if os.path.isdir(args.checkpoint):
        files = glob.glob(f'{args.checkpoint}/*.pth.tar') + glob.glob(f'{args.checkpoint}/*.pth')
        return [(args.model, file) for file in sorted(files, key=natural_key)]
    if args.model == 'all':
        args.pretrained = True
        return [(name, '') for name in list_models(pretrained=True, exclude_filters=_OTHER_CLASSES)]
    if os.path.isfile(args.model):
        with open(args.model) as f:
            return [(line.strip(), '') for line in f if line.strip()]
    if ':' in args.model or is_model(args.model):
        return []
    return [(name, '') for name in list_models(args.model, pretrained=True)]


def _retry(args: argparse.Namespace, validate: Callable[[argparse.Namespace], Dict[str, Any]]) -> Dict[str, Any]:
    """Evaluate, with smaller batches after each error for which that may help."""
    batch_size, message = args.batch_size, ''
    while batch_size:
        args.batch_size = batch_size * args.num_gpu
        try:
            return validate(args)
        except (RuntimeError, UserError) as e:
            message = str(e)
            _logger.error(f'{args.model}: {message}')
            if isinstance(e, UserError) or not check_batch_size_retry(message):
                break
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size = decay_batch_step(batch_size)
    return OrderedDict(model=args.model, error=message)


def write_results(path: str, results: Union[Dict[str, Any], List[Dict[str, Any]]], kind: str) -> None:
    """Write results to a file, of kind 'csv' or 'json'."""
    with open(path, 'w', newline='') as f:
        if kind == 'json':
            json.dump(results, f, indent=4)
            return
        rows = results if isinstance(results, list) else [results]
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(f, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
