"""Flags that several of the scripts have. Each is defined once: here, or with the options of pre-training."""
import argparse
from typing import Any, Dict

from .definitions import flags

_FLAGS: Dict[str, Dict[str, Any]] = {
    # dataset
    'class-map': dict(default='', metavar='FILE', help='file that maps names of classes to numbers'),
    'target-format': dict(
        choices=('indices', 'multihot'), help='labels of --task multilabel: class numbers or 0/1'),
    'task': dict(
        default='classification', choices=('classification', 'multilabel'), help='one label or several'),
    'multilabel-threshold': dict(
        type=float, default=0.5, metavar='P', help='probability that counts as a label'),
    # loaders
    'no-prefetcher': dict(action='store_true', help='normalise images in the workers, not on the device'),
    'naflex-loader': dict(action='store_true', help='images of any aspect ratio, for NaFlex models'),
    'naflex-max-seq-len': dict(
        type=int, default=576, metavar='N', help='number of patches of an image in validation'),
    # model
    'num-classes': dict(type=int, metavar='N', help='number of classes, as the model has it if absent'),
    'gp': dict(
        metavar='POOL', help='global pooling: avg, max, avgmax, catavgmax, token, map, as the model has it if absent'),
    'fuser': dict(default='', metavar='NAME', help='fuser of TorchScript: te, old, nvfuser or nvfuser2'),
    'torchscript': dict(action='store_true', help='script the model'),
    # precision
    'model-dtype': dict(
        metavar='TYPE', help='type of the weights without --amp: float32, bfloat16 or float16'),
}


def add_shared(group: argparse._ActionsContainer, *names: str) -> None:
    """Add flags to a parser or a group of one.

    Args:
        group: Where to add them.
        *names: Names without dashes.
    """
    for name in names:
        if name in _FLAGS:
            group.add_argument(f'--{name}', **_FLAGS[name])
        else:
            flags.add_option(group, name.replace('-', '_'))
