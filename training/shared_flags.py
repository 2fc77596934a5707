"""Flags that several of the scripts have, each defined once."""
import argparse
from typing import Any, Dict

from timm.utils import ParseKwargs

_SHORT = {'workers': '-j'}
_FLAGS: Dict[str, Dict[str, Any]] = {
    # dataset
    'data-dir': dict(metavar='DIR', help='folder of the data'),
    'dataset': dict(
        default='', metavar='NAME', help='dataset as <type>/<name>; a folder or tar of images without it'),
    'dataset-download': dict(action='store_true', help='let timm download torch/ and tfds/ datasets'),
    'dataset-trust-remote-code': dict(action='store_true', help='let a hub dataset run code of its own'),
    'class-map': dict(default='', metavar='FILE', help='file that maps names of classes to numbers'),
    'input-key': dict(metavar='KEY', help='key of the images in the dataset'),
    'input-img-mode': dict(
        metavar='MODE', help='PIL mode to read images in, by the number of channels if absent'),
    'target-key': dict(
        metavar='KEY', help='key of the labels, or one binary field per class with commas between'),
    'target-format': dict(
        choices=('indices', 'multihot'), help='labels of --task multilabel: class numbers or 0/1'),
    'task': dict(
        default='classification', choices=('classification', 'multilabel'), help='one label or several'),
    'multilabel-threshold': dict(
        type=float, default=0.5, metavar='P', help='probability that counts as a label'),
    # images
    'in-chans': dict(type=int, metavar='N', help='channels of an image, 3 if absent'),
    'input-size': dict(type=int, nargs=3, metavar='N', help='channels, height and width'),
    'crop-pct': dict(
        type=float, metavar='X', help='share of an image that the centre crop of validation keeps'),
    'mean': dict(type=float, nargs='+', metavar='X', help='mean to normalise images with'),
    'std': dict(type=float, nargs='+', metavar='X', help='standard deviation likewise'),
    'interpolation': dict(default='', metavar='NAME', help='how validation images are resized'),
    # loaders
    'workers': dict(type=int, default=4, metavar='N', help='processes that load images'),
    'pin-mem': dict(action='store_true', help='load images into pinned memory'),
    'no-prefetcher': dict(action='store_true', help='normalise images in the workers, not on the device'),
    'naflex-loader': dict(action='store_true', help='images of any aspect ratio, for NaFlex models'),
    'naflex-max-seq-len': dict(
        type=int, default=576, metavar='N', help='number of patches of an image in validation'),
    # model
    'num-classes': dict(type=int, metavar='N', help='number of classes, as the model has it if absent'),
    'gp': dict(
        metavar='POOL', help='global pooling: avg, max, avgmax, catavgmax, token, map, as the model has it if absent'),
    'model-kwargs': dict(
        nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE', help='arguments of the model'),
    'channels-last': dict(action='store_true', help='channels_last memory layout'),
    'fuser': dict(default='', metavar='NAME', help='fuser of TorchScript: te, old, nvfuser or nvfuser2'),
    'torchscript': dict(action='store_true', help='script the model'),
    'torchcompile': dict(nargs='?', const='inductor', metavar='BACKEND', help='compile the model'),
    'torchcompile-mode': dict(metavar='MODE', help='mode of torch.compile'),
    # precision
    'amp': dict(action='store_true', help='mixed precision'),
    'amp-dtype': dict(default='float16', metavar='TYPE', help='float16 or bfloat16'),
    'model-dtype': dict(
        metavar='TYPE', help='type of the weights without --amp: float32, bfloat16 or float16'),
    'fast-norm': dict(action='store_true', help='norm layers in low precision under --amp'),
}


def add_shared(group: argparse._ActionsContainer, *names: str) -> None:
    """Add flags to a parser or a group of one.

    Args:
        group: Where to add them.
        *names: Names without dashes.
    """
    for name in names:
        short = (_SHORT[name],) if name in _SHORT else ()
        group.add_argument(*short, f'--{name}', **_FLAGS[name])


class DefaultsFormatter(argparse.HelpFormatter):
    """Adds the default to the help of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        plain = action.default in (None, '', False, argparse.SUPPRESS) or action.default in ([], {})
        return action.help if plain or 'default' in action.help else f'{action.help} (default: %(default)s)'
