"""Evaluation of published weights and of checkpoints, as `validate.py` runs it."""
import argparse
import csv
import glob
import json
import logging
import os
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

import torch
import torch.nn as nn

from timm.data import MultiLabelTarget, RealLabelsImagenet, create_dataset, create_loader, create_naflex_loader
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.models import is_model, list_models, load_checkpoint, reparameterize_model, resolve_model_input_args
from timm.task.evaluator import ClassificationEvaluator, MultiLabelClassificationEvaluator
from timm.utils import ParseKwargs, check_batch_size_retry, decay_batch_step, natural_key, random_seed, set_jit_fuser
from .data import check_source, resolve_image_config
from .device import Place, precision, speed_up_cuda
from .errors import UserError, user_errors
from .evaluation import describe, evaluate
from .flags import DefaultsFormatter
from .model import MISFITS

_logger = logging.getLogger(__name__)

# Published weights whose head is not of ImageNet-1k.
_OTHER_CLASSES = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of `validate.py`, with the flags and defaults of timm's."""
    parser = argparse.ArgumentParser(description='Evaluate image models.', formatter_class=DefaultsFormatter)
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    for add_flags in (_dataset_flags, _model_flags, _device_flags, _output_flags):
        add_flags(parser)
    return parser


def _dataset_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Dataset').add_argument
    add('--data-dir', metavar='DIR', help='folder of the data')
    add('--dataset', default='', metavar='NAME', help='dataset as <type>/<name>; a folder or tar of images without it')
    add('--split', default='validation', metavar='NAME', help='split to evaluate on')
    add('--num-samples', type=int, metavar='N', help='length of the split, for streamed datasets')
    add('--dataset-download', action='store_true', help='let timm download torch/ and tfds/ datasets')
    add('--class-map', default='', metavar='FILE', help='file that maps names of classes to numbers')
    add('--input-key', metavar='KEY', help='key of the images in the dataset')
    add('--input-img-mode', metavar='MODE', help='PIL mode to read images in, by the number of channels if absent')
    add('--target-key', metavar='KEY', help='key of the labels, or one binary field per class with commas between')
    add('--target-format', choices=('indices', 'multihot'), help='labels of --task multilabel: class numbers or 0/1')
    add('--dataset-trust-remote-code', action='store_true', help='let a hub dataset run code of its own')
    add('--task', default='classification', choices=('classification', 'multilabel'), help='one label or several')
    add('--multilabel-threshold', type=float, default=0.5, metavar='P', help='probability that counts as a label')
    add('--real-labels', default='', metavar='FILE', help='JSON with the labels of ImageNet ReaL')
    add('--valid-labels', default='', metavar='FILE', help='file with the numbers of the only classes to look at')
    add('-j', '--workers', type=int, default=4, metavar='N', help='processes that load images')
    add('-b', '--batch-size', type=int, default=256, metavar='N', help='images in a batch')
    add('--img-size', type=int, metavar='N', help='image size, as the model has it if absent')
    add('--in-chans', type=int, metavar='N', help='channels of an image, 3 if absent')
    add('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width')
    add('--use-train-size', action='store_true', help='size of training, where the weights have another for tests')
    add('--crop-pct', type=float, metavar='X', help='share of an image that the centre crop keeps')
    add('--crop-mode', metavar='MODE', help='squash, border or center, as the model has it if absent')
    add('--crop-border-pixels', type=int, metavar='N', help='pixels to cut off at each side of an image first')
    add('--mean', type=float, nargs='+', metavar='X', help='mean to normalise images with')
    add('--std', type=float, nargs='+', metavar='X', help='standard deviation likewise')
    add('--interpolation', default='', metavar='NAME', help='how images are resized')
    add('--tf-preprocessing', action='store_true', help='preprocess with TensorFlow')
    add('--no-prefetcher', action='store_true', help='normalise images in the workers, not on the device')
    add('--pin-mem', action='store_true', help='load images into pinned memory')
    add('--naflex-loader', action='store_true', help='images of any aspect ratio, for NaFlex models')
    add('--naflex-max-seq-len', type=int, default=576, metavar='N', help='number of patches of an image')


def _model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    add = group.add_argument
    add('-m', '--model', default='dpn92', metavar='NAME', help='model, a pattern of names, a file of names, or all')
    add('--pretrained', action='store_true', help='published weights; the default without --checkpoint')
    add('--checkpoint', default='', metavar='FILE', help='weights, or a folder of them')
    add('--use-ema', action='store_true', help='the moving average of the checkpoint, if it has one')
    add('--num-classes', type=int, metavar='N', help='number of classes, as the model has it if absent')
    add('--gp', metavar='POOL', help='global pooling, as the model has it if absent')
    add('--test-pool', action='store_true', help='pool after the classifier, where images are larger than in training')
    add('--reparam', action='store_true', help='reparameterise the model')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE', help='arguments of the model')
    compiled = group.add_mutually_exclusive_group()
    compiled.add_argument('--torchscript', action='store_true', help='script the model')
    compiled.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the model')
    compiled.add_argument('--aot-autograd', action='store_true', help='compile the model by functorch')
    add('--torchcompile-mode', metavar='MODE', help='mode of torch.compile')


def _device_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Device').add_argument
    add('--device', default='cuda', metavar='NAME', help='device to evaluate on')
    add('--num-gpu', type=int, default=1, metavar='N', help='number of GPUs')
    add('--channels-last', action='store_true', help='channels_last memory layout')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', metavar='TYPE', help='float16 or bfloat16')
    add('--model-dtype', metavar='TYPE', help='type of the weights without --amp: float32, bfloat16 or float16')
    add('--fuser', default='', metavar='NAME', help='fuser of TorchScript: te, old, nvfuser or nvfuser2')
    add('--fast-norm', action='store_true', help='norm layers in low precision under --amp')
    add('--seed', type=int, default=42, metavar='N', help='seed')


def _output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Output').add_argument
    add('--log-freq', type=int, default=10, metavar='N', help='batches between two reports')
    add('--metrics-avg', choices=('micro', 'macro', 'weighted'), help='add precision, recall and F1, averaged so')
    add('--results-file', default='', metavar='FILE', help='write the results to this file')
    add('--results-format', default='csv', choices=('csv', 'json'), help='its format')
    add('--retry', action='store_true', help='after an error, try again with smaller batches')


def validate(args: argparse.Namespace, create_model: Callable[..., nn.Module]) -> Dict[str, Any]:
    """Evaluate one model.

    Args:
        args: Arguments of the script.
        create_model: `timm.create_model`, or what stands in for it.

    Returns:
        Name, metrics in percent, millions of parameters, size and preprocessing of the images.

    Raises:
        UserError: The arguments ask for what there is not.
    """
    args.prefetcher = not args.no_prefetcher
    args.pretrained = args.pretrained or not args.checkpoint
    place = _set_up(args)
    model = _create_model(args, create_model)
    num_parameters = sum(p.numel() for p in model.parameters())
    data_config = resolve_image_config(args, model, use_test_size=not args.use_train_size, verbose=True)
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        data_config['crop_pct'] = 1. if pooled else data_config['crop_pct']
    patch_size = model.get_patch_size() if hasattr(model, 'get_patch_size') else (16, 16)
    model = _place(args, model, place)
    dataset = _open(args, data_config)
    loader = _create_loader(args, dataset, data_config, patch_size, place)
    metrics = _evaluate(args, model, loader, dataset, place)
    _logger.info(describe(metrics))
    return OrderedDict(
        model=args.model,
        **metrics,
        param_count=round(num_parameters / 1e6, 2),
        img_size=data_config['input_size'][-1],
        crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'],
    )


def _set_up(args: argparse.Namespace) -> Place:
    speed_up_cuda()
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise UserError(f'--amp keeps its weights in float32: leave out --model-dtype {args.model_dtype}.')
    if args.target_format == 'multihot' and args.task != 'multilabel':
        raise UserError('--target-format multihot gives several labels an image: add --task multilabel.')
    if args.task == 'multilabel' and (args.real_labels or args.metrics_avg):
        raise UserError('--real-labels and --metrics-avg are for one label an image.')
    with user_errors(f'--device {args.device}', RuntimeError):
        place = precision(args, torch.device(args.device))
    random_seed(args.seed)
    if args.fuser:
        with user_errors(f'--fuser {args.fuser}', AssertionError):
            set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()
    return place


def _create_model(args: argparse.Namespace, create_model: Callable[..., nn.Module]) -> nn.Module:
    """Create the model with its weights, and set `num_classes` in the arguments."""
    with user_errors(f'--model {args.model}', *MISFITS):
        arguments = resolve_model_input_args(
            args.model,
            dict(img_size=args.img_size, in_chans=args.in_chans, input_size=args.input_size),
            global_pool=args.gp,
            **args.model_kwargs,
        )
        model = create_model(**{
            **arguments,
            'num_classes': arguments.get('num_classes') if args.num_classes is None else args.num_classes,
            'pretrained': args.pretrained,
            'scriptable': args.torchscript,
        })
    if args.num_classes is None:
        args.num_classes = model.num_classes
    if args.checkpoint:
        with user_errors(f'--checkpoint {args.checkpoint}', *MISFITS):
            load_checkpoint(model, args.checkpoint, args.use_ema)
    return reparameterize_model(model) if args.reparam else model


def _place(args: argparse.Namespace, model: nn.Module, place: Place) -> nn.Module:
    layout = torch.channels_last if args.channels_last else torch.preserve_format
    with user_errors(f'--device {args.device}', AssertionError, RuntimeError):
        model = _compiled(args, model.to(place.device, place.dtype, memory_format=layout))
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


def _compiled(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    if args.torchcompile:
        torch.compiler.reset()  # what an earlier model left
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        from functorch.compile import memory_efficient_fusion
        return memory_efficient_fusion(model)
    return torch.jit.script(model) if args.torchscript else model


def _open(args: argparse.Namespace, data_config: Dict[str, Any]):
    arguments = {}
    if args.task == 'multilabel':
        arguments['target_transform'] = MultiLabelTarget(args.num_classes, dense=args.target_format == 'multihot')
        arguments['target_format'] = args.target_format
    folder = args.data or args.data_dir
    check_source(args.dataset, folder)
    with user_errors(f'--dataset {args.dataset or folder}, split {args.split}', *MISFITS, ImportError):
        return create_dataset(
            args.dataset,
            root=folder,
            seed=args.seed,
            load_bytes=args.tf_preprocessing,
            input_img_mode=args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L'),
            trust_remote_code=args.dataset_trust_remote_code,
            download=args.dataset_download,
            **{name: getattr(args, name) for name in ('split', 'num_samples', 'class_map', 'input_key', 'target_key')},
            **arguments,
        )


def _create_loader(
        args: argparse.Namespace,
        dataset,
        data_config: Dict[str, Any],
        patch_size: Tuple[int, int],
        place: Place,
) -> Iterable:
    common = dict(
        device=place.device,
        img_dtype=place.dtype,
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


def _evaluate(args: argparse.Namespace, model: nn.Module, loader: Iterable, dataset, place: Place) -> Dict[str, float]:
    if args.task == 'multilabel':
        evaluator = MultiLabelClassificationEvaluator(place.device, threshold=args.multilabel_threshold)
        return _rounded(evaluate(model, loader, evaluator, args, place, 'Test', args.log_freq))

    real_labels = None
    if args.real_labels:
        real_labels = RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels)
    predictions = _Predictions() if args.metrics_avg else None

    def after_batch(output: torch.Tensor, target: torch.Tensor) -> None:
        for collector in (real_labels, predictions):
            if collector is not None:
                collector.add_result(*((output,) if collector is real_labels else (output, target)))

    metrics = evaluate(
        model, loader, ClassificationEvaluator(place.device), args, place, 'Test', args.log_freq,
        after_batch=after_batch, classes=_valid_labels(args, place.device))
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
    """Collects predictions for precision, recall and F1 of scikit-learn."""

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


def validate_all(
        args: argparse.Namespace,
        validate: Callable[[argparse.Namespace], Dict[str, Any]],
) -> Union[Dict[str, Any], List[Dict[str, Any]]]:
    """Evaluate all models or checkpoints that the arguments name, the best one first.

    Returns:
        The results, as a list if the arguments name a group.
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
    """Evaluate with ever smaller batches until one fits."""
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
