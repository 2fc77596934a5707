"""The flags of `train.py`, and their defaults in supervised training.

Names and defaults are those of timm's own script, release 1.0.31. Pre-training (`--mim`) uses the same flags with its
own defaults.
"""
import argparse
from typing import Set

from .definitions import flags
from .shared_flags import add_shared

# Defaults of the flags that are shared with pre-training
_DEFAULTS = dict(
    dataset='', train_split='train', val_split='validation', model='resnet50', initial_checkpoint='', resume='',
    batch_size=128, grad_accum_steps=1, model_kwargs={}, interpolation='', amp_dtype='float16', opt='sgd', momentum=0.9,
    weight_decay=2e-5, clip_mode='norm', layer_decay_min_scale=0, opt_kwargs={}, lr_base=0.1, lr_base_size=256,
    lr_base_scale='', sched='cosine', epochs=300, epoch_repeats=0., warmup_epochs=5, warmup_lr=1e-5, min_lr=0,
    cooldown_epochs=0, decay_milestones=[90, 180, 270], decay_rate=0.1, lr_noise_pct=0.67, lr_noise_std=1.,
    lr_cycle_mul=1., lr_cycle_decay=0.5, lr_cycle_limit=1, lr_k_decay=1., scale=[0.08, 1.], ratio=[3 / 4, 4 / 3],
    hflip=0.5, vflip=0., color_jitter=0.4, train_interpolation='random', model_ema_decay=0.9998, seed=42,
    log_interval=50, val_interval=1, recovery_interval=0, checkpoint_hist=10, output='', experiment='', wandb_tags=[],
    wandb_resume_id='', workers=4, naflex_max_seq_len=576, naflex_train_seq_lens=[128, 256, 576, 784, 1024],
    naflex_loss_scale='linear',
)
_LOSSES = ('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db')  # timm.loss.LOSS_TYPES


def pretraining_flags() -> Set[str]:
    """Return the names of the flags that work only with `--mim`."""
    parser = argparse.ArgumentParser(add_help=False)
    flags.add_arguments(parser)
    return {action.dest for action in parser._actions} - {'mim'}


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of `train.py`."""
    parser = flags.OneLineParser(
        usage='%(prog)s [--mim METHOD] --data-dir DIR [flags]',
        description='Train an image model with labels, or pre-train a vision transformer without (--mim METHOD).',
        epilog='The defaults shown are those of training with labels; with --mim, options take the method\'s defaults.',
        formatter_class=flags.DefaultsFormatter,
    )
    flags.add_arguments(parser)
    flags.add_training_arguments(parser)
    parser.set_defaults(**_DEFAULTS)
    for add_flags in (
            _dataset, _model, _device, _schedule, _augmentation, _loss, _batch_norm, _moving_average,
            _miscellaneous, _scheduled_resolution, _naflex, _distillation):
        add_flags(parser)
    return parser


def _dataset(parser: argparse.ArgumentParser) -> None:
    add_shared(flags.group_of(parser, 'Dataset'), 'class-map', 'target-format')


def _model(parser: argparse.ArgumentParser) -> None:
    group = flags.group_of(parser, 'Model')
    add = group.add_argument
    add('--pretrained-cfg-overlay', nargs='*', default={}, action=flags.KeyValues, metavar='KEY=VALUE',
        help='replace entries of the configuration that comes with the weights')
    add('--head-init-scale', type=float, metavar='X', help='factor on the initial weights of the classifier')
    add('--head-init-bias', type=float, metavar='X', help='initial bias of the classifier')
    add_shared(group, 'torchscript', 'num-classes', 'gp', 'fuser')


def _device(parser: argparse.ArgumentParser) -> None:
    group = flags.group_of(parser, 'Device')
    add = group.add_argument
    add_shared(group, 'model-dtype')
    add('--local_rank', type=int, default=0, metavar='N', help='ignored; old launchers give it')


def _schedule(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Schedule').add_argument
    add('--sched-on-updates', action='store_true', help='step the schedule at every update, not every epoch')
    add('--patience-epochs', type=int, default=10, metavar='N', help='epochs without improvement, for --sched plateau')


def _augmentation(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Augmentation and regularisation').add_argument
    add('--aug-repeats', type=float, default=0, metavar='N', help='augmented copies of an image, spread over processes')
    add('--aug-splits', type=int, default=0, metavar='N',
        help='copies of each image in a batch, of which the first is clean: 0, or 2 or more')
    add('--reprob', type=float, default=0., metavar='P', help='probability of random erasing')
    add('--remode', default='pixel', metavar='MODE', help='value of erased pixels: const, rand or pixel')
    add('--recount', type=int, default=1, metavar='N', help='maximum number of rectangles to erase')
    add('--resplit', action='store_true', help='do not erase in the first split of the batch')
    add('--mixup', type=float, default=0., metavar='X', help='alpha of mixup, 0 for none')
    add('--cutmix', type=float, default=0., metavar='X', help='alpha of cutmix, 0 for none')
    add('--cutmix-minmax', type=float, nargs='+', metavar='X', help='range of the fraction that cutmix replaces')
    add('--mixup-prob', type=float, default=1., metavar='P', help='probability of mixup or cutmix')
    add('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='probability of cutmix if both are on')
    add('--mixup-mode', default='batch', metavar='MODE', help='mix per batch, pair or elem')
    add('--mixup-off-epoch', type=int, default=0, metavar='N', help='epoch from which mixup and cutmix are off')
    add('--smoothing', type=float, metavar='X', help='label smoothing (default: 0.1, with --task multilabel 0)')
    add('--drop', type=float, default=0., metavar='RATE', help='dropout')
    add('--drop-connect', type=float, metavar='RATE', help='old name of --drop-path')
    add('--drop-block', type=float, metavar='RATE', help='drop block')


def _loss(parser: argparse.ArgumentParser) -> None:
    group = flags.group_of(parser, 'Task and loss')
    add_shared(group, 'task', 'multilabel-threshold')
    add = group.add_argument
    add('--loss', choices=_LOSSES, help='loss (default: ce, with --task multilabel bce)')
    add('--jsd-loss', action='store_true', help='the same as --loss jsd, for --aug-splits')
    add('--bce-loss', action='store_true', help='the same as --loss bce')
    add('--bce-sum', action='store_true', help='sum binary cross-entropy over classes')
    add('--bce-target-thresh', type=float, metavar='X', help='soft targets above this become 1 in bce, others 0')
    add('--bce-pos-weight', type=float, metavar='X', help='the same as --loss-pos-weight')
    add('--loss-pos-weight', metavar='WEIGHT', help='weight of positives: a number, numbers, a file, or neg_pos')
    add('--loss-class-weight', metavar='WEIGHT', help='weight of classes: numbers, a file, inv_freq or effective_num')
    add('--loss-weight-power', type=float, default=1., metavar='X', help='exponent of neg_pos and inv_freq')
    add('--loss-weight-beta', type=float, default=0.999, metavar='X', help='beta of effective_num')
    add('--loss-weight-max', type=float, metavar='X', help='largest weight of the three')
    add('--class-stats', default='', metavar='FILE', help='JSON with pos_counts and num_samples of the training set')
    add('--asl-gamma-pos', type=float, default=1., metavar='X', help='focusing parameter of positives in asl')
    add('--asl-gamma-neg', type=float, default=4., metavar='X', help='focusing parameter of negatives in asl')
    add('--asl-clip', type=float, default=0.05, metavar='X', help='probability margin of negatives in asl')
    add('--asl-reduction', default='batchmean', metavar='HOW', help='batchmean, sum or mean')
    add('--poly-epsilon', type=float, default=2., metavar='X', help='coefficient of poly')
    add('--poly-gamma', type=float, default=0., metavar='X', help='focusing parameter of poly with --task multilabel')
    add('--poly-alpha', type=float, metavar='X', help='class balance of poly with --task multilabel')
    add('--twoway-tp', type=float, default=4., metavar='X', help='temperature of positives in twoway')
    add('--twoway-tn', type=float, default=1., metavar='X', help='temperature of negatives in twoway')
    add('--db-neg-scale', type=float, default=2., metavar='X', help='scale of negative logits in db')
    add('--db-init-bias', type=float, default=0.05, metavar='X', help='shift by the class prior in db')
    add('--db-focal-gamma', type=float, default=2., metavar='X', help='focusing parameter of db')


def _batch_norm(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Batch norm').add_argument
    add('--bn-momentum', type=float, metavar='X', help='momentum of batch norm, for models that take it')
    add('--bn-eps', type=float, metavar='X', help='epsilon of batch norm, for models that take it')
    add('--sync-bn', action='store_true', help='synchronise batch statistics over all processes')
    add('--dist-bn', default='reduce', metavar='HOW', help="share running statistics: reduce, broadcast or ''")
    add('--split-bn', action='store_true', help='use separate batch norms for each augmentation split')


def _moving_average(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Moving average').add_argument
    add('--model-ema-force-cpu', action='store_true', help='keep the average on the CPU, and do not evaluate it')


def _miscellaneous(parser: argparse.ArgumentParser) -> None:
    group = flags.group_of(parser, 'Miscellaneous')
    add = group.add_argument
    add('--worker-seeding', default='all', metavar='MODE', help='random generators to seed in a worker: all or part')
    add('--save-images', action='store_true', help='write a batch of training images at every report')
    add('--eval-metric', metavar='NAME', help='metric that ranks checkpoints; top1, or map with --task multilabel')
    add('--tta', type=int, default=0, metavar='N', help='not supported: loaders yield one view per image')
    add('--use-multi-epochs-loader', action='store_true', help='keep the loader between epochs')
    add_shared(group, 'no-prefetcher')


def _scheduled_resolution(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Scheduled resolution').add_argument
    add('--train-img-sizes', type=int, nargs='+', metavar='N', help='square image sizes; each batch has one')
    add('--train-batch-sizes', type=int, nargs='+', metavar='N', help='batch size for each image size')
    add('--train-size-probs', type=float, nargs='+', metavar='P', help='probability of each image size')
    add('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
        help='use the same mix of sizes in every epoch, or progress from the first size to the last')
    add('--train-size-schedule-spread', type=float, default=0.65, metavar='X', help='width of the progressive mix')
    add('--train-size-random-mix', type=float, default=0.1, metavar='P',
        help='fraction of random sizes in the progressive mix')
    add('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N', help='batches in an epoch')
    add('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
        help='how the loss is scaled with the size of its batch')


def _naflex(parser: argparse.ArgumentParser) -> None:
    group = flags.group_of(parser, 'NaFlex')
    add = group.add_argument
    add('--naflex-patch-sizes', type=int, nargs='+', metavar='N', help='patch sizes; each batch has one of them')
    add('--naflex-patch-size-probs', type=float, nargs='+', metavar='P', help='probability of each patch size')
    add('--naflex-patchify-channels-first', action='store_true', help='order of pixels in a patch: channels first')


def _distillation(parser: argparse.ArgumentParser) -> None:
    add = flags.group_of(parser, 'Distillation').add_argument
    add('--kd-model-name', metavar='NAME', help='teacher model, with its published weights')
    add('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'), help='what is distilled')
    add('--kd-loss-type', default='kl', metavar='NAME', help='loss between logits: kl')
    add('--distill-loss-weight', type=float, metavar='X', help='weight of the distillation loss')
    add('--task-loss-weight', type=float, metavar='X',
        help='weight of the task loss; if given alone, the distillation loss has 1 minus it')
    add('--kd-temperature', type=float, default=4., metavar='X', help='temperature of the softmax')
    add('--kd-student-feature-dim', type=int, metavar='N', help="width of the student's features, detected if absent")
    add('--kd-teacher-feature-dim', type=int, metavar='N', help="width of the teacher's features, detected if absent")
    add('--kd-token-distill-type', default='soft', choices=('soft', 'hard'), help='targets of token distillation')
