"""What is learned: the loss, and the task around it."""
import argparse
from typing import Any, Dict

import torch
import torch.nn as nn

from timm.loss import load_class_stats, resolve_class_weights
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
    TrainingTask,
)
from .errors import UserError


def mixes_labels(args: argparse.Namespace) -> bool:
    """Whether mixup or cutmix are on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def criterion_arguments(args: argparse.Namespace) -> Dict[str, Any]:
    """Collect the arguments of `timm.loss.create_classification_loss` that do not come from the task.

    Raises:
        OSError: A file with weights or statistics of classes cannot be read.
        ValueError: Weights or statistics are not what the loss needs.
    """
    stats = load_class_stats(args.class_stats)
    weights = {
        kind: resolve_class_weights(
            getattr(args, f'loss_{kind}'),
            kind=kind,
            class_stats=stats,
            power=args.loss_weight_power,
            beta=args.loss_weight_beta,
            max_weight=args.loss_weight_max,
        )
        for kind in ('class_weight', 'pos_weight')
    }
    counts = dict(class_counts=stats[0], num_samples=stats[1]) if stats is not None and args.loss == 'db' else {}
    names = (
        'smoothing', 'bce_target_thresh', 'bce_sum', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'asl_reduction',
        'poly_epsilon', 'poly_gamma', 'poly_alpha', 'twoway_tp', 'twoway_tn', 'db_neg_scale', 'db_init_bias',
        'db_focal_gamma',
    )
    return dict(
        loss_type=args.loss,
        soft_targets=mixes_labels(args),
        jsd_splits=args.aug_splits,
        **{name: getattr(args, name) for name in names},
        **weights,
        **counts,
    )


def create_task(
        args: argparse.Namespace,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        verbose: bool,
) -> TrainingTask:
    """Create the training task around a model: classification, several labels, or one of the distillations.

    Raises:
        UserError: Weights of classes do not fit their number.
        ValueError: A model cannot be distilled in this way.
    """
    common = dict(
        criterion_kwargs=_fitting_criterion_arguments(args), device=device, dtype=dtype, verbose=verbose)
    if args.kd_model_name is not None:
        return _create_distillation(args, model, common)
    if args.task == 'multilabel':
        return MultiLabelClassificationTask(model, threshold=args.multilabel_threshold, **common)
    return ClassificationTask(model, **common)


def _fitting_criterion_arguments(args: argparse.Namespace) -> Dict[str, Any]:
    arguments = criterion_arguments(args)
    flags = dict(class_weight='--loss-class-weight', pos_weight='--loss-pos-weight', class_counts='--class-stats')
    for name, flag in flags.items():
        values = arguments.get(name)
        if isinstance(values, torch.Tensor) and len(values) != args.num_classes:
            raise UserError(f'{flag} has {len(values)} entries but the model has {args.num_classes} classes.')
    return arguments


def _create_distillation(args: argparse.Namespace, model: nn.Module, common: Dict[str, Any]) -> TrainingTask:
    common = dict(
        student_model=model,
        teacher_model=args.kd_model_name,
        distill_loss_weight=args.distill_loss_weight,
        task_loss_weight=args.task_loss_weight,
        **common,
    )
    if args.kd_distill_type == 'feature':
        return FeatureDistillationTask(
            student_feature_dim=args.kd_student_feature_dim,
            teacher_feature_dim=args.kd_teacher_feature_dim,
            **common,
        )
    if args.kd_distill_type == 'token':
        return TokenDistillationTask(
            distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
    return LogitDistillationTask(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)
