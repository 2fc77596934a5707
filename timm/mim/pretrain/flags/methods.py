"""The flags of masked image modeling."""
import argparse

from .parser import KeyValues

METHODS = ('simmim', 'mae', 'ijepa')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of masked image modeling to a training script's parser."""
    group = parser.add_argument_group('Masked image modeling')
    group.add_argument(
        '--mim', metavar='METHOD',
        help=f'pre-train with this method: {", ".join(METHODS)}, or one of --mim-module')
    group.add_argument(
        '--mim-module', metavar='FILE',
        help='Python file, or name of a module, that registers a method or model of your own')
    group.add_argument(
        '--mask-ratio', type=float, metavar='RATIO',
        help='share of the image that is masked (default: from the recipe of the method)')
    group.add_argument(
        '--mask-unit', type=int, nargs='+', metavar='N',
        help='side of a masked square in pixels, or its height and width (default: near 32, what fits the model)')
    group.add_argument(
        '--mim-kwargs', nargs='*', action=KeyValues, metavar='KEY=VALUE',
        help='any option of the method')
    group.add_argument(
        '--weight-decay-end', type=float, metavar='X',
        help='weight decay at the end of training, reached along a cosine (default: --weight-decay)')
    group.add_argument(
        '--fsdp', action='store_true',
        help='shard parameters, gradients and optimizer state over processes, for models that outgrow one device')
    group.add_argument(
        '--max-unreadable', type=float, metavar='SHARE',
        help='end a run in which more of the images of an epoch cannot be read (default: 0.1); others take their place '
             'up to there. A stream of images leaves out what it cannot read without telling')
    group.add_argument(
        '--max-pixels', type=int, metavar='N',
        help='count images of more pixels as unreadable, since one is decoded whole, with some 13 bytes of memory for '
             'each pixel; 0 for no limit (default: 89478485, 1.2 GB)')
    add_probe_arguments(group)
    group.add_argument(
        '--mim-probe-interval', type=int, metavar='N',
        help='epochs between two probes, 0 for one at the end (default: 0)')
    group.add_argument(
        '--log-tensorboard', action='store_true',
        help='write event files for TensorBoard to the run folder')


def add_probe_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say how an encoder is probed."""
    group.add_argument(
        '--mim-probe-dir', metavar='DIR',
        help='labelled images to probe the encoder on: class folders, below train/ and val/ or alone')
    group.add_argument(
        '--mim-probe', nargs='+', metavar='PROBE',
        help='knn, linear, attentive (default: knn linear)')
    group.add_argument(
        '--mim-probe-layers', nargs='+', metavar='LAYER',
        help='layers to probe, from 1 on, last or all; attentive takes the last (default: last)')
    group.add_argument(
        '--mim-probe-pool', metavar='HOW',
        help="pool as the model does (model), or average over patches (avg); the class token of a model is not trained "
             "by SimMIM and I-JEPA (default: model)")


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of masked image modeling to a validation script's parser."""
    group = parser.add_argument_group('Masked image modeling')
    add = group.add_argument
    add('--mim', metavar='METHOD', help='evaluate a --checkpoint that was pre-trained with this method')
    add('--mim-module', metavar='FILE', help="Python file, or name of a module, with the method (default: the run's)")
    add('--mask-seed', type=int, metavar='N', help='seed of the masks (default: that of training)')
    add('--max-unreadable', type=float, metavar='SHARE', help='end if more of the images cannot be read (default: 0.1)')
    add('--max-pixels', type=int, metavar='N', help='count images of more pixels as unreadable (default: 89478485)')
    add('--mim-pictures', metavar='FILE', help='write what the method sees and predicts as a picture')
    add_probe_arguments(group)
