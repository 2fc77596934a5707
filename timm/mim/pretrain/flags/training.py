"""The flags that pre-training shares with training by labels. Each program sets their defaults itself."""
import argparse
from typing import Any, Dict, Mapping

from .parser import KeyValues, OneOrTwo

# Flags that a validation script has too
SHARED: Dict[str, Dict[str, Any]] = {
    # dataset
    'data-dir': dict(metavar='DIR', help='folder of the data'),
    'dataset': dict(
        metavar='NAME', help='dataset as <type>/<name>; a folder or tar of images without it'),
    'dataset-download': dict(action='store_true', help='let timm download torch/ and tfds/ datasets'),
    'dataset-trust-remote-code': dict(action='store_true', help='let a hub dataset run code of its own'),
    'input-key': dict(metavar='KEY', help='key of the images in the dataset'),
    'input-img-mode': dict(
        metavar='MODE', help='PIL mode to read images in, by the number of channels if absent'),
    'target-key': dict(
        metavar='KEY', help='key of the labels, or one binary field per class with commas between'),
    # images
    'in-chans': dict(type=int, metavar='N', help='channels of an image, 3 if absent'),
    'input-size': dict(type=int, nargs=3, metavar='N', help='channels, height and width'),
    'crop-pct': dict(
        type=float, metavar='X', help='share of an image that the centre crop of validation keeps'),
    'mean': dict(type=float, nargs='+', metavar='X', help='mean to normalise images with'),
    'std': dict(type=float, nargs='+', metavar='X', help='standard deviation likewise'),
    'interpolation': dict(metavar='NAME', help='how validation images are resized'),
    # loaders
    'workers': dict(type=int, metavar='N', help='processes that load images'),
    'pin-mem': dict(action='store_true', help='load images into pinned memory'),
    # model
    'model-kwargs': dict(
        nargs='*', action=KeyValues, metavar='KEY=VALUE', help='arguments of the model'),
    'channels-last': dict(action='store_true', help='channels_last memory layout'),
    'torchcompile': dict(nargs='?', const='inductor', metavar='BACKEND', help='compile the model'),
    'torchcompile-mode': dict(metavar='MODE', help='mode of torch.compile'),
    # precision
    'amp': dict(action='store_true', help='mixed precision'),
    'amp-dtype': dict(metavar='TYPE', help='float16 or bfloat16'),
    'fast-norm': dict(action='store_true', help='norm layers in low precision under --amp'),
}
_SHORT = {'workers': '-j'}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser, in groups."""
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with flags by name, or the name of a recipe '
                                                               'that comes with timm.mim; the command line wins')
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    for add_flags in (
            _dataset, _model, _device, _optimizer, _schedule, _augmentation, _moving_average, _miscellaneous):
        add_flags(parser)


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Return the group of flags with this title, a new one if there is none."""
    found = [group for group in parser._action_groups if group.title == title]
    return found[0] if found else parser.add_argument_group(title)


def add_shared(
        group: argparse._ActionsContainer,
        *names: str,
        table: Mapping[str, Dict[str, Any]] = SHARED,
) -> None:
    """Add flags of a table to a parser or a group of one.

    Args:
        group: Where to add them.
        *names: Names without dashes.
        table: Arguments of `add_argument` by name.
    """
    for name in names:
        short = (_SHORT[name],) if name in _SHORT else ()
        group.add_argument(*short, f'--{name}', **table[name])


def _dataset(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Dataset')
    add_shared(
        group,
        'data-dir', 'dataset', 'dataset-download', 'dataset-trust-remote-code', 'input-key', 'input-img-mode',
        'target-key',
    )
    add = group.add_argument
    add('--train-split', metavar='NAME', help='split to train on')
    add('--val-split', metavar='NAME', help="split to evaluate on, '' for none")
    add('--train-num-samples', type=int, metavar='N', help='length of the training split, for streamed datasets')
    add('--val-num-samples', type=int, metavar='N', help='length of the validation split, for streamed datasets')


def _model(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Model')
    add = group.add_argument
    add('--model', metavar='NAME', help='model to train')
    add('--pretrained', action='store_true', help='start from the published weights')
    add('--pretrained-path', metavar='FILE', help='start from these weights, with position table and head adapted')
    add('--initial-checkpoint', metavar='FILE', help='start from exactly these weights')
    add('--resume', metavar='FILE', help="checkpoint to go on from; 'auto': the last one of --experiment")
    add('--no-resume-opt', action='store_true', help='resume the weights only, with a fresh optimizer')
    add('--img-size', type=int, nargs='+', action=OneOrTwo, metavar='N', help='image size, or height and width')
    add('-b', '--batch-size', type=int, metavar='N', help='images per process and step')
    add('-vb', '--validation-batch-size', type=int, metavar='N', help='the same for validation')
    add('--grad-accum-steps', type=int, metavar='N', help='batches that make one update')
    add('--grad-checkpointing', action='store_true', help='recompute activations, for less memory')
    add_shared(
        group,
        'in-chans', 'input-size', 'crop-pct', 'mean', 'std', 'interpolation', 'channels-last', 'fast-norm',
        'model-kwargs', 'torchcompile', 'torchcompile-mode',
    )


def _device(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Device')
    add_shared(group, 'amp', 'amp-dtype')
    add = group.add_argument
    add('--device', metavar='NAME', help='device to train on; the accelerator if absent, else the CPU')
    add('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    add('--synchronize-step', action='store_true', help='wait for the device after each update')
    add('--device-modules', nargs='+', metavar='MODULE', help='modules to import for a device backend')


def _optimizer(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Optimizer')
    add = group.add_argument
    add('--opt', metavar='NAME', help='optimizer')
    add('--opt-eps', type=float, metavar='X', help='epsilon of the optimizer')
    add('--opt-betas', type=float, nargs='+', metavar='X', help='betas of the optimizer')
    add('--momentum', type=float, metavar='X', help='momentum, for optimizers that have one')
    add('--weight-decay', type=float, metavar='X', help='weight decay')
    add('--clip-grad', type=float, metavar='X', help='limit of the gradient')
    add('--clip-mode', metavar='MODE', help='what is limited: norm, value or agc')
    add('--layer-decay', type=float, metavar='X', help='factor on the learning rate from each layer to the one below')
    add('--layer-decay-min-scale', type=float, metavar='X', help='smallest factor of --layer-decay')
    add('--layer-decay-no-opt-scale', type=float, metavar='X', help='layers with a factor below this stay frozen')
    add('--opt-kwargs', nargs='*', action=KeyValues, metavar='KEY=VALUE', help='optimizer arguments')


def _schedule(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Schedule')
    add = group.add_argument
    add('--lr', type=float, metavar='X', help='learning rate, goes before --lr-base')
    add('--lr-base', type=float, metavar='X', help='learning rate for --lr-base-size images per update')
    add('--lr-base-size', type=int, metavar='N', help='batch size that --lr-base is for')
    add('--lr-base-scale', metavar='HOW', help='scale --lr-base linear or sqrt, by the optimizer if absent')
    add('--sched', metavar='NAME', help='cosine, tanh, step, multistep, poly, wsd, rsqrt, constant, '
        'plateau or none')
    add('--epochs', type=int, metavar='N', help='epochs of the schedule')
    add('--epoch-repeats', type=float, metavar='N', help='passes over a streamed dataset in one epoch')
    add('--start-epoch', type=int, metavar='N', help='epoch to begin with, whatever a checkpoint says')
    add('--stop-epoch', type=int, metavar='N', help='stop after so many epochs, with the schedule of --epochs')
    add('--save-epochs', type=int, nargs='+', metavar='N', help='keep the checkpoints after so many epochs for good')
    add('--warmup-epochs', type=int, metavar='N', help='epochs of warm-up')
    add('--warmup-lr', type=float, metavar='X', help='learning rate that warm-up begins with')
    add('--warmup-prefix', action='store_true', help='add the warm-up to --epochs')
    add('--min-lr', type=float, metavar='X', help='lowest learning rate')
    add('--cooldown-epochs', type=int, metavar='N', help='epochs at the lowest rate at the end')
    add('--decay-milestones', type=int, nargs='+', metavar='N', help='epochs of multistep')
    add('--decay-epochs', type=float, metavar='N', help='epochs between two steps (90), or of the decay of wsd and '
        'rsqrt (a fifth of the run)')
    add('--decay-rate', '--dr', type=float, metavar='X', help='factor of a step')
    add('--lr-decay-fn', metavar='NAME', help='curve of the decay of wsd and rsqrt')
    add('--lr-stable-timescale', type=float, metavar='N', help='time scale of rsqrt in epochs')
    add('--lr-noise', type=float, nargs='+', metavar='X', help='shares of the run between which the rate is noisy')
    add('--lr-noise-pct', type=float, metavar='X', help='limit of that noise')
    add('--lr-noise-std', type=float, metavar='X', help='standard deviation of that noise')
    add('--lr-cycle-mul', type=float, metavar='X', help='each cycle is so many times longer')
    add('--lr-cycle-decay', type=float, metavar='X', help='each cycle is so many times lower')
    add('--lr-cycle-limit', type=int, metavar='N', help='number of cycles')
    add('--lr-k-decay', type=float, metavar='X', help='k of k-decay, for cosine and poly')


def _augmentation(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Augmentation and regularisation')
    add = group.add_argument
    add('--no-aug', action='store_true', help='resize and crop only')
    add('--train-crop-mode', metavar='MODE', help='rrc, rkrc or rkrr')
    add('--scale', type=float, nargs='+', metavar='X', help='range of the area of random crops')
    add('--ratio', type=float, nargs='+', metavar='X', help='range of their aspect ratio')
    add('--hflip', type=float, metavar='P', help='probability of a horizontal flip')
    add('--vflip', type=float, metavar='P', help='probability of a vertical flip')
    add('--color-jitter', type=float, metavar='X', help='strength of colour jitter')
    add('--color-jitter-prob', type=float, metavar='P', help='probability of colour jitter')
    add('--grayscale-prob', type=float, metavar='P', help='probability of a grey image')
    add('--gaussian-blur-prob', type=float, metavar='P', help='probability of blur')
    add('--aa', metavar='POLICY', help='AutoAugment or RandAugment policy, such as rand-m9-mstd0.5-inc1')
    add('--train-interpolation', metavar='NAME', help='how training images are resized')
    add('--drop-path', type=float, metavar='RATE', help='stochastic depth')


def _moving_average(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Moving average')
    add = group.add_argument
    add('--model-ema', action='store_true', help='keep a moving average of the weights, and evaluate that')
    add('--model-ema-decay', type=float, metavar='X', help='decay of the average')
    add('--model-ema-warmup', action='store_true', help='let the decay grow at the beginning')


def _miscellaneous(parser: argparse.ArgumentParser) -> None:
    group = group_of(parser, 'Miscellaneous')
    add_shared(group, 'workers', 'pin-mem')
    add = group.add_argument
    add('--seed', type=int, metavar='N', help='seed of weights, order and augmentation')
    add('--log-interval', type=int, metavar='N', help='updates between two reports')
    add('--val-interval', type=int, metavar='N', help='epochs between two evaluations and checkpoints')
    add('--recovery-interval', type=int, metavar='N', help='updates between two recovery checkpoints')
    add('--checkpoint-hist', type=int, metavar='N', help='number of checkpoints to keep')
    add('--output', metavar='DIR', help='folder of run folders, ./output/train if absent')
    add('--experiment', metavar='NAME', help='name of the run folder; time, model and size if absent')
    add('--log-wandb', action='store_true', help='report to Weights & Biases')
    add('--wandb-project', metavar='NAME', help='its project')
    add('--wandb-tags', nargs='+', metavar='TAG', help='its tags')
    add('--wandb-resume-id', metavar='ID', help='its run to go on with')
