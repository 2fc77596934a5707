"""Check the arguments of supervised training for contradictions, and derive arguments from others."""
import argparse
import logging

from timm.loss import create_classification_loss
from .definitions import flags
from .errors import UserError, user_errors
from .model import check_name
from .objective import criterion_arguments, mixes_labels

_logger = logging.getLogger(__name__)


def resolve(args: argparse.Namespace) -> None:
    """Complete and check the arguments in place, as far as possible without a model or data.

    Raises:
        UserError: Arguments contradict each other, or name something that does not exist.
    """
    if args.data and not args.data_dir:
        args.data_dir = args.data
    if args.drop_connect is not None:
        _logger.warning('--drop-connect is the old name of --drop-path.')
        args.drop_path = args.drop_connect if args.drop_path is None else args.drop_path
    mistakes = flags.Mistakes()
    with mistakes.collected():
        check_name('--model', args.model)
    for check in (_resolve_image_size, _resolve_task, _resolve_loss, _check_loaders, check_precision, _check_others):
        with mistakes.collected():
            check(args)
    mistakes.raise_all()


def _check_others(args: argparse.Namespace) -> None:
    if args.resume == 'auto' and not args.experiment:
        raise UserError('--resume auto searches the run folder: name the folder with --experiment.')
    if args.tta > 1:
        raise UserError('--tta is not supported: loaders yield one view per image.')


def check_precision(args: argparse.Namespace) -> None:
    """Check --amp, --amp-dtype and --model-dtype.

    Raises:
        UserError: There is no such type, or the flags contradict each other.
    """
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise UserError(f'--amp keeps the weights in float32: leave out --model-dtype {args.model_dtype}.')
    for name, value in dict(amp_dtype=args.amp_dtype, model_dtype=args.model_dtype).items():
        if value not in (None, 'float32', 'float16', 'bfloat16') or (name, value) == ('amp_dtype', 'float32'):
            raise UserError(f"--{name.replace('_', '-')}: choose float16 or bfloat16, not '{value}'.")


def check_labels(args: argparse.Namespace) -> None:
    """Check that --task and --target-format fit together.

    Raises:
        UserError: They contradict each other.
    """
    if args.task != 'multilabel' and args.target_format == 'multihot':
        raise UserError('--target-format multihot means several labels per image: add --task multilabel.')


def _resolve_image_size(args: argparse.Namespace) -> None:
    """Turn --img-size with two numbers into an input size."""
    if isinstance(args.img_size, list):
        if len(args.img_size) != 2 or args.input_size is not None:
            raise UserError('--img-size takes one size, or height and width without --input-size.')
        args.input_size, args.img_size = [args.in_chans or 3, *args.img_size], None


def _resolve_task(args: argparse.Namespace) -> None:
    several = args.task == 'multilabel'
    if args.smoothing is None:
        args.smoothing = 0. if several else 0.1
    if several and args.kd_model_name:
        raise UserError('--kd-model-name compares a softmax over classes: use --task classification.')
    if several and args.aug_splits:
        raise UserError('--aug-splits compares a softmax over classes: use --task classification.')
    check_labels(args)
    if not 0 < args.multilabel_threshold < 1:
        raise UserError(f'--multilabel-threshold {args.multilabel_threshold:g} must lie between 0 and 1.')


def _resolve_loss(args: argparse.Namespace) -> None:
    """Replace the old names of losses by the new ones, and create the loss once to find errors in its arguments."""
    for name in ('jsd', 'bce'):
        if getattr(args, f'{name}_loss'):
            if args.loss not in (None, name):
                raise UserError(f'--{name}-loss contradicts --loss {args.loss}.')
            args.loss = name
    if args.bce_pos_weight is not None:
        if args.loss_pos_weight not in (None, str(args.bce_pos_weight)):
            raise UserError('--bce-pos-weight and --loss-pos-weight mean the same: give one of them.')
        args.loss_pos_weight = str(args.bce_pos_weight)
    if args.aug_splits == 1 or args.aug_splits < 0:
        raise UserError('--aug-splits must be 0, or 2 or more.')
    with user_errors('--loss', OSError, TypeError, ValueError):
        create_classification_loss(multi_label=args.task == 'multilabel', **criterion_arguments(args))


def _check_loaders(args: argparse.Namespace) -> None:
    scheduled = args.train_img_sizes is not None
    for alone, flag in ((args.naflex_loader, '--naflex-loader'), (scheduled, '--train-img-sizes')):
        if alone and args.use_multi_epochs_loader:
            raise UserError(f'--use-multi-epochs-loader does not work with {flag}.')
        if alone and args.aug_splits:
            raise UserError(f'--aug-splits does not work with {flag}.')
    if args.naflex_loader:
        _check_naflex(args, scheduled)
    if args.split_bn and not (args.aug_splits or args.resplit):
        raise UserError('--split-bn needs --aug-splits or --resplit.')
    if args.split_bn and args.sync_bn:
        raise UserError('--split-bn and --sync-bn exclude each other.')
    if args.torchscript and args.torchcompile:
        raise UserError('--torchscript and --torchcompile exclude each other.')
    if args.torchscript and args.sync_bn:
        raise UserError('--torchscript and --sync-bn exclude each other.')
    if mixes_labels(args) and args.aug_splits and not args.no_prefetcher:
        raise UserError('--mixup and --cutmix work with --aug-splits only if --no-prefetcher is given.')


def _check_naflex(args: argparse.Namespace, scheduled: bool) -> None:
    if scheduled:
        raise UserError('--naflex-loader and --train-img-sizes are two ways to vary sizes: choose one.')
    if args.kd_model_name:
        raise UserError('--kd-model-name does not work with --naflex-loader: teachers take images, not patches.')
    if args.aug_repeats:
        raise UserError('--aug-repeats does not work with --naflex-loader.')
    if mixes_labels(args) and (args.cutmix_minmax is not None or args.mixup_mode != 'batch'):
        raise UserError('--cutmix-minmax and --mixup-mode do not work with --naflex-loader.')
    if args.naflex_patch_size_probs and len(args.naflex_patch_size_probs) != len(args.naflex_patch_sizes or []):
        raise UserError('--naflex-patch-size-probs takes one probability for each of --naflex-patch-sizes.')
    if args.naflex_loss_scale not in ('none', 'sqrt', 'linear'):
        raise UserError(f"--naflex-loss-scale: there is no '{args.naflex_loss_scale}'; choose none, sqrt, linear.")
