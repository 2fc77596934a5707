"""The flags of `validate.py`."""
import argparse

from .definitions import flags
from .shared_flags import add_shared

# Defaults of the flags that are shared with train.py
_DEFAULTS = dict(naflex_max_seq_len=576, dataset='', interpolation='', workers=4, amp_dtype='float16', model_kwargs={})


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of `validate.py`, with the flags and defaults of timm's own script."""
    parser = flags.OneLineParser(
        usage='%(prog)s [--mim METHOD] --data-dir DIR [flags]',
        description='Evaluate image models.',
        formatter_class=flags.DefaultsFormatter,
    )
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    for add_flags in (_dataset_flags, _model_flags, _device_flags, _output_flags):
        add_flags(parser)
    flags.add_validation_arguments(parser)
    parser.set_defaults(**_DEFAULTS)
    return parser


def _dataset_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset')
    add_shared(
        group,
        'data-dir', 'dataset', 'dataset-download', 'dataset-trust-remote-code', 'class-map', 'input-key',
        'input-img-mode', 'exif-rotation', 'target-key', 'target-format', 'task', 'multilabel-threshold',
    )
    add = group.add_argument
    add('--split', default='validation', metavar='NAME', help='split to evaluate on')
    add('--num-samples', type=int, metavar='N', help='length of the split, for streamed datasets')
    add('--real-labels', default='', metavar='FILE', help='JSON file with the labels of ImageNet ReaL')
    add('--valid-labels', default='', metavar='FILE', help='file with class numbers; evaluate these classes only')
    add('-b', '--batch-size', type=int, default=256, metavar='N', help='images in a batch')
    add('--img-size', type=int, metavar='N', help='image size (default: from the model)')
    add('--use-train-size', action='store_true', help='use the image size of training, not that of tests')
    add('--crop-mode', metavar='MODE', help='squash, border or center (default: from the model)')
    add('--crop-border-pixels', type=int, metavar='N', help='pixels to cut off at each side before resizing')
    add('--tf-preprocessing', action='store_true', help='preprocess with TensorFlow')
    add_shared(
        group,
        'in-chans', 'input-size', 'crop-pct', 'mean', 'std', 'interpolation', 'workers', 'pin-mem', 'no-prefetcher',
        'naflex-loader', 'naflex-max-seq-len',
    )


def _model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    add = group.add_argument
    add('-m', '--model', default='dpn92', metavar='NAME', help='model, a pattern of names, a file of names, or all')
    add('--pretrained', action='store_true', help='use the published weights, as without --checkpoint')
    add('--checkpoint', default='', metavar='FILE', help='weights, or a folder of them')
    add('--use-ema', action='store_true', help='use the moving average of the checkpoint, if it has one')
    add('--test-pool', action='store_true', help='pool after the classifier if images are larger than in training')
    add('--reparam', action='store_true', help='reparameterise the model')
    compiled = group.add_mutually_exclusive_group()
    add_shared(compiled, 'torchscript', 'torchcompile')
    compiled.add_argument('--aot-autograd', action='store_true', help='compile the model with functorch')
    add_shared(group, 'num-classes', 'gp', 'model-kwargs', 'torchcompile-mode')


def _device_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Device')
    add = group.add_argument
    add('--device', metavar='NAME', help='device to evaluate on; the accelerator if absent, else the CPU')
    add('--num-gpu', type=int, default=1, metavar='N', help='number of GPUs')
    add('--seed', type=int, default=42, metavar='N', help='seed')
    add_shared(group, 'channels-last', 'amp', 'amp-dtype', 'model-dtype', 'fuser', 'fast-norm')


def _output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Output').add_argument
    add('--log-freq', type=int, default=10, metavar='N', help='batches between two reports')
    add('--metrics-avg', choices=('micro', 'macro', 'weighted'), help='add precision, recall and F1 with this average')
    add('--results-file', default='', metavar='FILE', help='write the results to this file')
    add('--results-format', default='csv', choices=('csv', 'json'), help='format of --results-file')
    add('--retry', action='store_true', help='after an error, try again with smaller batches')
