#!/usr/bin/env python3
"""Pre-train a vision transformer by masked image modeling: `python train.py --mim simmim --data-dir FOLDER`.

The flags are those of timm's training script. Flags that were not given take their value from the recipe of the method,
or else the default named here. `-c FILE.yaml` gives flags by name; what the command line says goes before it.
"""
import argparse
import sys
from difflib import get_close_matches
from typing import Any, List, Optional, Tuple

import yaml

from timm.mim import pretrain
from timm.utils import ParseKwargs, setup_default_logging

# Flags of timm's training script that have nothing to do with pre-training; each is refused by name.
SUPERVISED = (
    'class-map gp num-classes head-init-scale head-init-bias fuser torchscript model-dtype local_rank '
    'layer-decay layer-decay-min-scale layer-decay-no-opt-scale patience-epochs '
    'aug-repeats aug-splits jsd-loss bce-loss bce-sum bce-target-thresh bce-pos-weight reprob remode recount resplit '
    'mixup cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode mixup-off-epoch smoothing '
    'drop drop-connect drop-block bn-momentum bn-eps sync-bn dist-bn split-bn model-ema-force-cpu '
    'worker-seeding recovery-interval save-images no-prefetcher eval-metric tta use-multi-epochs-loader '
    'log-wandb wandb-project wandb-tags wandb-resume-id task loss multilabel-threshold target-format '
    'train-img-sizes train-batch-sizes train-size-probs train-size-schedule train-size-schedule-spread '
    'train-size-random-mix train-batches-per-epoch variable-batch-loss-scale '
    'naflex-loader naflex-train-seq-lens naflex-max-seq-len naflex-patch-sizes naflex-patch-size-probs '
    'naflex-loss-scale naflex-patchify-channels-first '
    'kd-model-name kd-distill-type kd-loss-type distill-loss-weight task-loss-weight kd-temperature '
    'kd-student-feature-dim kd-teacher-feature-dim kd-token-distill-type'
).split()


def create_parser() -> argparse.ArgumentParser:
    """Create the parser. Nothing has a default in it, so that only what the user gave is in the result."""
    parser = argparse.ArgumentParser(
        description='Pre-train a vision transformer by masked image modeling.',
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with flags by name')
    pretrain.add_arguments(parser)

    parser.add_argument('data', nargs='?', metavar='DIR', help='image folder, the same as --data-dir')
    add = parser.add_argument_group('Dataset').add_argument
    add('--data-dir', metavar='DIR', help='folder of images, flat or nested (default: photographs of scikit-image)')
    add('--dataset', metavar='NAME', help='dataset as <type>/<name>, any that timm reads (default: image folder)')
    add('--train-split', metavar='NAME', help='split to train on (default: train)')
    add('--val-split', metavar='NAME', help='split to hold out (default: validation, or some training images)')
    add('--train-num-samples', type=int, metavar='N', help='length of the training split, for streamed datasets')
    add('--val-num-samples', type=int, metavar='N', help='length of the held-out split, for streamed datasets')
    add('--dataset-download', action='store_true', help='allow timm to download torch/ and tfds/ datasets')
    add('--dataset-trust-remote-code', action='store_true', help='allow a hub dataset to run code of its own')
    add('--input-img-mode', metavar='MODE', help='PIL mode to read images in (default: by --in-chans)')
    add('--input-key', metavar='KEY', help='key of the images in the dataset')
    add('--target-key', metavar='KEY', help='key of the labels in the dataset, which are read and not used')

    add = parser.add_argument_group('Model').add_argument
    add('--model', metavar='NAME', help='model to pre-train (default: vit_small_patch16_224)')
    add('--pretrained', action='store_true', help="start from the model's published weights")
    add('--pretrained-path', metavar='FILE', help='start from these weights, adapted as published ones are')
    add('--initial-checkpoint', metavar='FILE', help='start from exactly these weights')
    add('--resume', metavar='FILE', help="checkpoint to go on from; 'auto': the last one of the run folder, if any")
    add('--no-resume-opt', action='store_true', help='go on from the weights only, with a fresh optimizer')
    add('--img-size', type=int, nargs='+', metavar='N', help='image size, or height and width (default: the model\'s)')
    add('--in-chans', type=int, metavar='N', help='channels: 1 grey, 3 RGB, 4 RGBA (default: 3)')
    add('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width')
    add('--mean', type=float, nargs='+', metavar='X', help="mean to normalise images with (default: the model's)")
    add('--std', type=float, nargs='+', metavar='X', help='standard deviation likewise')
    add('--interpolation', metavar='NAME', help='resizing of held-out images (default: the model\'s)')
    add('--crop-pct', type=float, metavar='X', help='centre crop of held-out images (default: the model\'s)')
    add('-b', '--batch-size', type=int, metavar='N', help='images per process and step (default: 128)')
    add('-vb', '--validation-batch-size', type=int, metavar='N', help='the same for held-out images')
    add('--channels-last', action='store_true', help='channels_last memory layout')
    add('--grad-accum-steps', type=int, metavar='N', help='batches that make one update (default: 1)')
    add('--grad-checkpointing', action='store_true', help='recompute activations, for less memory')
    add('--fast-norm', action='store_true', help='norm layers in low precision under --amp')
    add('--model-kwargs', nargs='*', action=ParseKwargs, metavar='KEY=VALUE', help='any argument of the model')
    add('--drop-path', type=float, metavar='RATE', help='stochastic depth (default: the model\'s)')
    add('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the whole step')
    add('--torchcompile-mode', metavar='MODE', help='mode of torch.compile')

    add = parser.add_argument_group('Device').add_argument
    add('--device', help='device to train on (default: cuda)')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', metavar='TYPE', help='bfloat16 or float16 (default: bfloat16)')
    add('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    add('--synchronize-step', action='store_true', help='wait for the device after each step')
    add('--device-modules', nargs='+', metavar='MODULE', help='modules to import for a device backend')

    add = parser.add_argument_group('Optimizer').add_argument
    add('--opt', metavar='NAME', help='optimizer')
    add('--opt-eps', type=float, metavar='X', help='epsilon of the optimizer')
    add('--opt-betas', type=float, nargs='+', metavar='X', help='betas of the optimizer')
    add('--momentum', type=float, metavar='X', help='momentum, for optimizers that have one (default: 0.9)')
    add('--weight-decay', type=float, metavar='X', help='weight decay')
    add('--clip-grad', type=float, metavar='X', help='gradient clipping, 0 for none')
    add('--clip-mode', metavar='MODE', help='norm, value or agc (default: norm)')
    add('--opt-kwargs', nargs='*', action=ParseKwargs, metavar='KEY=VALUE', help='any argument of the optimizer')

    add = parser.add_argument_group('Schedule').add_argument
    add('--lr', type=float, metavar='X', help='learning rate, goes before --lr-base')
    add('--lr-base', type=float, metavar='X', help='learning rate for --lr-base-size images per update')
    add('--lr-base-size', type=int, metavar='N', help='batch size of --lr-base (default: 256)')
    add('--lr-base-scale', metavar='HOW', help='scale --lr-base with the batch: linear or sqrt (default: linear)')
    add('--sched', metavar='NAME', help='schedule of the learning rate (default: cosine)')
    add('--sched-on-updates', action='store_true', help='step the schedule at every update, which is always done')
    add('--epochs', type=int, metavar='N', help='epochs of the schedule (default: 300)')
    add('--epoch-repeats', type=float, metavar='N', help='passes over the images in one epoch (default: 1)')
    add('--start-epoch', type=int, metavar='N', help='epoch to begin with')
    add('--stop-epoch', type=int, metavar='N', help='stop after so many epochs, with the schedule of --epochs')
    add('--save-epochs', type=int, nargs='+', metavar='N', help='keep the checkpoints after so many epochs for good')
    add('--warmup-epochs', type=int, metavar='N', help='epochs of warm-up (default: a tenth of --epochs, at most 10)')
    add('--warmup-lr', type=float, metavar='X', help='learning rate that warm-up starts from (default: 0)')
    add('--warmup-prefix', action='store_true', help='add the warm-up to --epochs')
    add('--min-lr', type=float, metavar='X', help='lowest learning rate (default: 0)')
    add('--cooldown-epochs', type=int, metavar='N', help='epochs at the lowest rate at the end (default: 0)')
    add('--decay-milestones', type=int, nargs='+', metavar='N', help='epochs of a multistep schedule')
    add('--decay-epochs', type=float, metavar='N', help='epochs between two steps, or of the decay of wsd and rsqrt')
    add('--decay-rate', '--dr', type=float, metavar='X', help='factor of a step (default: 0.1)')
    add('--lr-noise', type=float, nargs='+', metavar='X', help='shares of the run between which the rate is noisy')
    add('--lr-noise-pct', type=float, metavar='X', help='limit of that noise (default: 0.67)')
    add('--lr-noise-std', type=float, metavar='X', help='standard deviation of that noise (default: 1)')
    add('--lr-cycle-mul', type=float, metavar='X', help='each cycle is so many times longer (default: 1)')
    add('--lr-cycle-decay', type=float, metavar='X', help='each cycle is so many times lower (default: 0.5)')
    add('--lr-cycle-limit', type=int, metavar='N', help='number of cycles (default: 1)')
    add('--lr-k-decay', type=float, metavar='X', help='k of k-decay, for cosine and poly (default: 1)')

    add = parser.add_argument_group('Augmentation').add_argument
    add('--no-aug', action='store_true', help='resize and crop only')
    add('--train-crop-mode', metavar='MODE', help='rrc, rkrc or rkrr (default: rrc)')
    add('--scale', type=float, nargs='+', metavar='X', help='range of the area of random crops')
    add('--ratio', type=float, nargs='+', metavar='X', help='range of the aspect ratio of random crops')
    add('--hflip', type=float, metavar='P', help='probability of a horizontal flip')
    add('--vflip', type=float, metavar='P', help='probability of a vertical flip (default: 0)')
    add('--color-jitter', type=float, metavar='X', help='strength of colour jitter')
    add('--color-jitter-prob', type=float, metavar='P', help='probability of colour jitter')
    add('--grayscale-prob', type=float, metavar='P', help='probability of a grey image (default: 0)')
    add('--gaussian-blur-prob', type=float, metavar='P', help='probability of blur (default: 0)')
    add('--aa', metavar='POLICY', help='AutoAugment or RandAugment policy')
    add('--train-interpolation', metavar='NAME', help='random, bilinear or bicubic')

    add = parser.add_argument_group('Moving average').add_argument
    add('--model-ema', action='store_true', help='keep a moving average of the weights, evaluate and export that')
    add('--model-ema-decay', type=float, metavar='X', help='decay of the average (default: 0.9998)')
    add('--model-ema-warmup', action='store_true', help='let the decay grow at the beginning')

    add = parser.add_argument_group('Miscellaneous').add_argument
    add('--seed', type=int, metavar='N', help='seed of weights, order, augmentation and masks (default: 42)')
    add('--log-interval', type=int, metavar='N', help='steps between two reports (default: 50)')
    add('--val-interval', type=int, metavar='N', help='epochs between two evaluations and checkpoints (default: 1)')
    add('--checkpoint-hist', type=int, metavar='N', help='number of checkpoints to keep (default: 10)')
    add('-j', '--workers', type=int, metavar='N', help='processes that load images (default: 4)')
    add('--pin-mem', action='store_true', help='load images into pinned memory')
    add('--output', metavar='DIR', help='folder of run folders (default: ./output/pretrain)')
    add('--experiment', metavar='NAME', help='name of the run folder (default: time, model and method)')

    for name in SUPERVISED:
        parser.add_argument(f'--{name}', nargs='*', help=argparse.SUPPRESS)
    return parser


parser = create_parser()


def _config_flags(path: str) -> List[str]:
    """Read a YAML file as flags, so that its values are checked as those of the command line are."""
    try:
        with open(path) as f:
            config = yaml.safe_load(f) or {}
    except OSError as e:
        _fail(f"--config: '{path}' cannot be read: {e.strerror}.")
    except yaml.YAMLError as e:
        _fail(f"--config: '{path}' is not YAML: {' '.join(str(e).split())}")
    if not isinstance(config, dict):
        _fail(f"--config: '{path}' must hold flags by name, as 'batch_size: 64'.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    flags = []
    for name, value in config.items():
        action = actions.get(str(name).replace('-', '_'))
        if action is None:
            near = get_close_matches(str(name), actions, n=1)
            _fail(f"--config: '{path}' names '{name}', which is no flag" + (f'; {near[0]}?' if near else '.'))
        flags += _as_flag(action, value)
    return flags


def _as_flag(action: argparse.Action, value: Any) -> List[str]:
    flag = '--data-dir' if action.dest == 'data' else max(action.option_strings, key=len)
    if value is None or value is False:
        return []
    if action.nargs == 0 or (value is True and action.nargs in ('?', '*')):
        return [flag]
    if isinstance(value, dict):
        # strings as they are, everything else as Python writes it, which is how ParseKwargs reads it
        return [flag] + [f'{k}={v}' for k, v in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [flag] + [str(v) for v in values] if values else []


def _fail(message: str) -> None:
    print(f'{parser.prog}: error: {message}', file=sys.stderr)
    raise SystemExit(2)


def _parse_args(argv: Optional[List[str]] = None) -> Tuple[argparse.Namespace, str]:
    """Parse the command line, with what a configuration file says before it."""
    argv = sys.argv[1:] if argv is None else argv
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    config, rest = config_parser.parse_known_args(argv)
    args = parser.parse_args((_config_flags(config.config) if config.config else []) + rest)
    return args, yaml.safe_dump(vars(args))


def main() -> None:
    args, _ = _parse_args()
    if getattr(args, 'mim', None) is None:
        _fail("supervised training is not part of this script yet: give --mim METHOD to pre-train, or use timm's own "
              'train.py to train with labels.')
    setup_default_logging()
    pretrain.run(args)


if __name__ == '__main__':
    main()
