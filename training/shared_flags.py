"""Flags that several scripts share. Each is defined once: here, or in the table of pre-training's options."""
import argparse
from typing import Any, Dict

from .definitions import flags

_FLAGS: Dict[str, Dict[str, Any]] = {
    # dataset
    'class-map': dict(default='', metavar='FILE', help='file that maps names of classes to numbers'),
    'target-format': dict(
        choices=('indices', 'multihot'), help='labels of --task multilabel: class numbers, or a 0 or 1 per class'),
    'task': dict(
        default='classification', choices=('classification', 'multilabel'), help='one label per image, or several'),
    'multilabel-threshold': dict(
        type=float, default=0.5, metavar='P', help='threshold of the probability for a predicted label'),
    # loaders
    'no-prefetcher': dict(action='store_true', help='normalise images in the workers, not on the device'),
    # model
    'num-classes': dict(type=int, metavar='N', help='number of classes (default: from the model)'),
    'gp': dict(
        metavar='POOL', help='global pooling: avg, max, avgmax, catavgmax, token or map (default: from the model)'),
    'fuser': dict(default='', metavar='NAME', help='fuser of TorchScript: te, old, nvfuser or nvfuser2'),
    'torchscript': dict(action='store_true', help='compile the model with TorchScript'),
    # precision
    'model-dtype': dict(
        metavar='TYPE', help='type of the weights without --amp: float32, bfloat16 or float16'),
}


def add_shared(group: argparse._ActionsContainer, *names: str) -> None:
    """Add flags to a parser, or to a group of its flags.

    Args:
        group: Where to add them.
        *names: Names without dashes.
    """
    for name in names:
        if name in _FLAGS:
            group.add_argument(f'--{name}', **_FLAGS[name])
        else:
            flags.add_option(group, name.replace('-', '_'))
