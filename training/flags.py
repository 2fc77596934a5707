"""The flags of `train.py`, each with its type and its default in supervised training.

Names and defaults are those of timm's own script, release 1.0.31. With `--mim` the same flags are used, and what was
not given has its default from there.
"""
import argparse
from typing import Set

from timm.loss import LOSS_TYPES
from timm.mim import pretrain
from timm.utils import ParseKwargs
from .shared_flags import DefaultsFormatter, add_shared


def pretraining_flags() -> Set[str]:
    """Names of the flags that have a meaning with `--mim` only."""
    parser = argparse.ArgumentParser(add_help=False)
    pretrain.add_arguments(parser)
    return {action.dest for action in parser._actions} - {'mim'}


class OneOrTwo(argparse.Action):
    """One number as it is, two as a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of `train.py`."""
    parser = argparse.ArgumentParser(
        description='Train an image model with labels, or pre-train a vision transformer without (--mim METHOD).',
        epilog='Defaults are those of training with labels; with --mim they come from the recipe of the method.',
        formatter_class=DefaultsFormatter,
    )
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with flags by name; the command line wins')
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    pretrain.add_arguments(parser)
    for add_flags in (
            _dataset, _model, _device, _optimizer, _schedule, _augmentation, _loss, _batch_norm, _moving_average,
            _miscellaneous, _scheduled_resolution, _naflex, _distillation):
        add_flags(parser)
    return parser


def _dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset')
    add_shared(
        group,
        'data-dir', 'dataset', 'dataset-download', 'dataset-trust-remote-code', 'class-map', 'input-key',
        'input-img-mode', 'target-key', 'target-format',
    )
    add = group.add_argument
    add('--train-split', default='train', metavar='NAME', help='split to train on')
    add('--val-split', default='validation', metavar='NAME', help="split to evaluate on, '' for none")
    add('--train-num-samples', type=int, metavar='N', help='length of the training split, for streamed datasets')
    add('--val-num-samples', type=int, metavar='N', help='length of the validation split, for streamed datasets')


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    add = group.add_argument
    add('--model', default='resnet50', metavar='NAME', help='model to train')
    add('--pretrained', action='store_true', help='start from the published weights')
    add('--pretrained-path', metavar='FILE', help='start from these weights, with position table and head adapted')
    add('--pretrained-cfg-overlay', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
        help='replace entries of the configuration that comes with the weights')
    add('--initial-checkpoint', default='', metavar='FILE', help='start from exactly these weights')
    add('--resume', default='', metavar='FILE', help="checkpoint to go on from; 'auto': the last one of --experiment")
    add('--no-resume-opt', action='store_true', help='resume the weights only, with a fresh optimizer')
    add('--img-size', type=int, nargs='+', action=OneOrTwo, metavar='N', help='image size, or height and width')
    add('-b', '--batch-size', type=int, default=128, metavar='N', help='images per process and step')
    add('-vb', '--validation-batch-size', type=int, metavar='N', help='the same for validation')
    add('--grad-accum-steps', type=int, default=1, metavar='N', help='batches that make one update')
    add('--grad-checkpointing', action='store_true', help='recompute activations, for less memory')
    add('--head-init-scale', type=float, metavar='X', help='factor on the initial weights of the classifier')
    add('--head-init-bias', type=float, metavar='X', help='initial bias of the classifier')
    compiled = group.add_mutually_exclusive_group()
    add_shared(compiled, 'torchscript', 'torchcompile')
    add_shared(
        group,
        'num-classes', 'gp', 'in-chans', 'input-size', 'crop-pct', 'mean', 'std', 'interpolation', 'channels-last',
        'fast-norm', 'model-kwargs', 'fuser', 'torchcompile-mode',
    )


def _device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Device')
    add = group.add_argument
    add('--device', metavar='NAME', help='device to train on; the accelerator of the machine if absent, else the CPU')
    add_shared(group, 'amp', 'amp-dtype', 'model-dtype')
    add('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    add('--synchronize-step', action='store_true', help='wait for the device after each update')
    add('--local_rank', type=int, default=0, metavar='N', help='for old launchers; the environment decides')
    add('--device-modules', nargs='+', metavar='MODULE', help='modules to import for a device backend')


def _optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Optimizer').add_argument
    add('--opt', default='sgd', metavar='NAME', help='optimizer')
    add('--opt-eps', type=float, metavar='X', help='epsilon of the optimizer')
    add('--opt-betas', type=float, nargs='+', metavar='X', help='betas of the optimizer')
    add('--momentum', type=float, default=0.9, metavar='X', help='momentum, for optimizers that have one')
    add('--weight-decay', type=float, default=2e-5, metavar='X', help='weight decay')
    add('--clip-grad', type=float, metavar='X', help='limit of the gradient')
    add('--clip-mode', default='norm', metavar='MODE', help='what is limited: norm, value or agc')
    add('--layer-decay', type=float, metavar='X', help='factor on the learning rate from each layer to the one below')
    add('--layer-decay-min-scale', type=float, default=0, metavar='X', help='smallest factor of --layer-decay')
    add('--layer-decay-no-opt-scale', type=float, metavar='X', help='layers with a factor below this stay frozen')
    add('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE', help='optimizer arguments')


def _schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Schedule').add_argument
    add('--lr', type=float, metavar='X', help='learning rate, goes before --lr-base')
    add('--lr-base', type=float, default=0.1, metavar='X', help='learning rate for --lr-base-size images per update')
    add('--lr-base-size', type=int, default=256, metavar='N', help='batch size that --lr-base is for')
    add('--lr-base-scale', default='', metavar='HOW', help='scale --lr-base linear or sqrt, by the optimizer if absent')
    add('--sched', default='cosine', metavar='NAME', help='cosine, tanh, step, multistep, poly, wsd, rsqrt, constant, '
                                                          'plateau or none')
    add('--sched-on-updates', action='store_true', help='step the schedule at every update, not every epoch')
    add('--epochs', type=int, default=300, metavar='N', help='epochs of the schedule')
    add('--epoch-repeats', type=float, default=0., metavar='N', help='passes over a streamed dataset in one epoch')
    add('--start-epoch', type=int, metavar='N', help='epoch to begin with, whatever a checkpoint says')
    add('--stop-epoch', type=int, metavar='N', help='stop after so many epochs, with the schedule of --epochs')
    add('--save-epochs', type=int, nargs='+', metavar='N', help='keep the checkpoints after so many epochs for good')
    add('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up')
    add('--warmup-lr', type=float, default=1e-5, metavar='X', help='learning rate that warm-up begins with')
    add('--warmup-prefix', action='store_true', help='add the warm-up to --epochs')
    add('--min-lr', type=float, default=0, metavar='X', help='lowest learning rate')
    add('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at the lowest rate at the end')
    add('--patience-epochs', type=int, default=10, metavar='N', help='epochs without progress, for plateau')
    add('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N', help='epochs of multistep')
    add('--decay-epochs', type=float, metavar='N', help='epochs between two steps (90), or of the decay of wsd and '
                                                        'rsqrt (a fifth of the run)')
    add('--decay-rate', '--dr', type=float, default=0.1, metavar='X', help='factor of a step')
    add('--lr-decay-fn', metavar='NAME', help='curve of the decay of wsd and rsqrt')
    add('--lr-stable-timescale', type=float, metavar='N', help='time scale of rsqrt in epochs')
    add('--lr-noise', type=float, nargs='+', metavar='X', help='shares of the run between which the rate is noisy')
    add('--lr-noise-pct', type=float, default=0.67, metavar='X', help='limit of that noise')
    add('--lr-noise-std', type=float, default=1., metavar='X', help='standard deviation of that noise')
    add('--lr-cycle-mul', type=float, default=1., metavar='X', help='each cycle is so many times longer')
    add('--lr-cycle-decay', type=float, default=0.5, metavar='X', help='each cycle is so many times lower')
    add('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles')
    add('--lr-k-decay', type=float, default=1., metavar='X', help='k of k-decay, for cosine and poly')


def _augmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Augmentation and regularisation').add_argument
    add('--no-aug', action='store_true', help='resize and crop only')
    add('--train-crop-mode', metavar='MODE', help='rrc, rkrc or rkrr')
    add('--scale', type=float, nargs='+', default=[0.08, 1.], metavar='X', help='range of the area of random crops')
    add('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3], metavar='X', help='range of their aspect ratio')
    add('--hflip', type=float, default=0.5, metavar='P', help='probability of a horizontal flip')
    add('--vflip', type=float, default=0., metavar='P', help='probability of a vertical flip')
    add('--color-jitter', type=float, default=0.4, metavar='X', help='strength of colour jitter')
    add('--color-jitter-prob', type=float, metavar='P', help='probability of colour jitter')
    add('--grayscale-prob', type=float, metavar='P', help='probability of a grey image')
    add('--gaussian-blur-prob', type=float, metavar='P', help='probability of blur')
    add('--aa', metavar='POLICY', help='AutoAugment or RandAugment policy, such as rand-m9-mstd0.5-inc1')
    add('--aug-repeats', type=float, default=0, metavar='N', help='augmented copies of an image, over processes')
    add('--aug-splits', type=int, default=0, metavar='N', help='clean and augmented copies in a batch: 0, or 2 or more')
    add('--reprob', type=float, default=0., metavar='P', help='probability of random erasing')
    add('--remode', default='pixel', metavar='MODE', help='what erased pixels become: const, rand or pixel')
    add('--recount', type=int, default=1, metavar='N', help='rectangles to erase')
    add('--resplit', action='store_true', help='leave the first split of the batch without erasing')
    add('--mixup', type=float, default=0., metavar='X', help='alpha of mixup, 0 for none')
    add('--cutmix', type=float, default=0., metavar='X', help='alpha of cutmix, 0 for none')
    add('--cutmix-minmax', type=float, nargs='+', metavar='X', help='range of the share that cutmix replaces')
    add('--mixup-prob', type=float, default=1., metavar='P', help='probability of mixup or cutmix')
    add('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='probability of cutmix where both are on')
    add('--mixup-mode', default='batch', metavar='MODE', help='one mix per batch, pair or elem')
    add('--mixup-off-epoch', type=int, default=0, metavar='N', help='epoch from which nothing is mixed')
    add('--smoothing', type=float, metavar='X', help='label smoothing; 0.1 by default, 0 with several labels an image')
    add('--train-interpolation', default='random', metavar='NAME', help='how training images are resized')
    add('--drop', type=float, default=0., metavar='RATE', help='dropout')
    add('--drop-connect', type=float, metavar='RATE', help='old name of --drop-path')
    add('--drop-path', type=float, metavar='RATE', help='stochastic depth')
    add('--drop-block', type=float, metavar='RATE', help='drop block')


def _loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Task and loss')
    add_shared(group, 'task', 'multilabel-threshold')
    add = group.add_argument
    add('--loss', choices=LOSS_TYPES, help='loss; ce by default, bce with several labels an image')
    add('--jsd-loss', action='store_true', help='the same as --loss jsd, for --aug-splits')
    add('--bce-loss', action='store_true', help='the same as --loss bce')
    add('--bce-sum', action='store_true', help='sum binary cross-entropy over classes')
    add('--bce-target-thresh', type=float, metavar='X', help='soft targets above this count as 1 in bce')
    add('--bce-pos-weight', type=float, metavar='X', help='the same as --loss-pos-weight')
    add('--loss-pos-weight', metavar='WEIGHT', help='weight of positives: a number, numbers, a file, or neg_pos')
    add('--loss-class-weight', metavar='WEIGHT', help='weight of classes: numbers, a file, inv_freq or effective_num')
    add('--loss-weight-power', type=float, default=1., metavar='X', help='exponent of neg_pos and inv_freq')
    add('--loss-weight-beta', type=float, default=0.999, metavar='X', help='beta of effective_num')
    add('--loss-weight-max', type=float, metavar='X', help='largest weight of the three')
    add('--class-stats', default='', metavar='FILE', help='JSON with pos_counts and num_samples of the training set')
    add('--asl-gamma-pos', type=float, default=1., metavar='X', help='focus on positives in asl')
    add('--asl-gamma-neg', type=float, default=4., metavar='X', help='focus on negatives in asl')
    add('--asl-clip', type=float, default=0.05, metavar='X', help='margin of negatives in asl')
    add('--asl-reduction', default='batchmean', metavar='HOW', help='batchmean, sum or mean')
    add('--poly-epsilon', type=float, default=2., metavar='X', help='coefficient of poly')
    add('--poly-gamma', type=float, default=0., metavar='X', help='focus of poly with several labels')
    add('--poly-alpha', type=float, metavar='X', help='balance of poly with several labels')
    add('--twoway-tp', type=float, default=4., metavar='X', help='temperature of positives in twoway')
    add('--twoway-tn', type=float, default=1., metavar='X', help='temperature of negatives in twoway')
    add('--db-neg-scale', type=float, default=2., metavar='X', help='scale of negative logits in db')
    add('--db-init-bias', type=float, default=0.05, metavar='X', help='shift by the class prior in db')
    add('--db-focal-gamma', type=float, default=2., metavar='X', help='focus of db')


def _batch_norm(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Batch norm').add_argument
    add('--bn-momentum', type=float, metavar='X', help='momentum of batch norm, for models that take it')
    add('--bn-eps', type=float, metavar='X', help='epsilon of batch norm, for models that take it')
    add('--sync-bn', action='store_true', help='statistics over the batches of all processes')
    add('--dist-bn', default='reduce', metavar='HOW', help="share running statistics: reduce, broadcast or ''")
    add('--split-bn', action='store_true', help='batch norms of their own for each augmentation split')


def _moving_average(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Moving average').add_argument
    add('--model-ema', action='store_true', help='keep a moving average of the weights, and evaluate that')
    add('--model-ema-force-cpu', action='store_true', help='keep it on the CPU, without evaluation')
    add('--model-ema-decay', type=float, default=0.9998, metavar='X', help='decay of the average')
    add('--model-ema-warmup', action='store_true', help='let the decay grow at the beginning')


def _miscellaneous(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Miscellaneous')
    add = group.add_argument
    add('--seed', type=int, default=42, metavar='N', help='seed of weights, order and augmentation')
    add('--worker-seeding', default='all', metavar='MODE', help='what is seeded in a worker: all or part')
    add('--log-interval', type=int, default=50, metavar='N', help='updates between two reports')
    add('--val-interval', type=int, default=1, metavar='N', help='epochs between two evaluations and checkpoints')
    add('--recovery-interval', type=int, default=0, metavar='N', help='updates between two recovery checkpoints')
    add('--checkpoint-hist', type=int, default=10, metavar='N', help='number of checkpoints to keep')
    add('--save-images', action='store_true', help='write a batch of training images at every report')
    add('--output', default='', metavar='DIR', help='folder of run folders, ./output/train if absent')
    add('--experiment', default='', metavar='NAME', help='name of the run folder; time, model and size if absent')
    add('--eval-metric', metavar='NAME', help='metric of the best checkpoint; top1, or map with several labels')
    add('--tta', type=int, default=0, metavar='N', help='not supported: loaders give one view of an image')
    add('--use-multi-epochs-loader', action='store_true', help='keep the loader between epochs')
    add('--log-wandb', action='store_true', help='report to Weights & Biases')
    add('--wandb-project', metavar='NAME', help='its project')
    add('--wandb-tags', nargs='+', default=[], metavar='TAG', help='its tags')
    add('--wandb-resume-id', default='', metavar='ID', help='its run to go on with')
    add_shared(group, 'workers', 'pin-mem', 'no-prefetcher')


def _scheduled_resolution(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Scheduled resolution').add_argument
    add('--train-img-sizes', type=int, nargs='+', metavar='N', help='square sizes, one of them for each batch')
    add('--train-batch-sizes', type=int, nargs='+', metavar='N', help='batch size for each of them')
    add('--train-size-probs', type=float, nargs='+', metavar='P', help='probability of each of them')
    add('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
        help='the same mix in every epoch, or from the first size to the last')
    add('--train-size-schedule-spread', type=float, default=0.65, metavar='X', help='width of the progressive mix')
    add('--train-size-random-mix', type=float, default=0.1, metavar='P', help='share of sizes drawn at random in it')
    add('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N', help='batches of an epoch')
    add('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
        help='how a gradient depends on the size of its batch')


def _naflex(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('NaFlex')
    add_shared(group, 'naflex-loader', 'naflex-max-seq-len')
    add = group.add_argument
    add('--naflex-train-seq-lens', type=int, nargs='+', default=[128, 256, 576, 784, 1024], metavar='N',
        help='numbers of patches, one of them for each batch')
    add('--naflex-patch-sizes', type=int, nargs='+', metavar='N', help='patch sizes, one of them for each batch')
    add('--naflex-patch-size-probs', type=float, nargs='+', metavar='P', help='probability of each of them')
    add('--naflex-loss-scale', default='linear', choices=('none', 'sqrt', 'linear'),
        help='how a gradient depends on the size of its batch')
    add('--naflex-patchify-channels-first', action='store_true', help='order of pixels in a patch: channels first')


def _distillation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Distillation').add_argument
    add('--kd-model-name', metavar='NAME', help='teacher, with its published weights')
    add('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'), help='what is distilled')
    add('--kd-loss-type', default='kl', metavar='NAME', help='loss between logits: kl')
    add('--distill-loss-weight', type=float, metavar='X', help='weight of the teacher')
    add('--task-loss-weight', type=float, metavar='X', help='weight of the labels; alone, the teacher gets the rest')
    add('--kd-temperature', type=float, default=4., metavar='X', help='temperature of the softmax')
    add('--kd-student-feature-dim', type=int, metavar='N', help="width of the student's features, found if absent")
    add('--kd-teacher-feature-dim', type=int, metavar='N', help="width of the teacher's features, found if absent")
    add('--kd-token-distill-type', default='soft', choices=('soft', 'hard'), help='targets of token distillation')
