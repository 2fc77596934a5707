"""Datasets, and what their images are: size, mode, normalisation."""
import argparse
import os
from typing import Any, Dict, Optional, Tuple

import torch.nn as nn
from torch.utils.data import Dataset

from timm.data import MultiLabelTarget, create_dataset, resolve_data_config
from timm.mim.pretrain.data.datasets import with_statistics_per_channel
from .errors import MISFITS, UserError, user_errors


def resolve_image_config(args: argparse.Namespace, model: nn.Module, **options) -> Dict[str, Any]:
    """Resolve size, crop and normalisation of images: what the arguments say, else what the model was trained with.

    Args:
        args: Arguments of the script.
        model: The model.
        **options: Options of `timm.data.resolve_data_config`.

    Raises:
        UserError: There are more means or deviations than channels.
    """
    with user_errors('--mean and --std take one number, or one per channel', AssertionError):
        config = resolve_data_config(vars(args), model=model, **options)
    return with_statistics_per_channel(config)


def open_splits(args: argparse.Namespace, mode: str) -> Tuple[Dataset, Optional[Dataset]]:
    """Open the splits to train on and to validate on, None for a run without validation.

    Args:
        args: Arguments of the run.
        mode: PIL mode to read images in.

    Raises:
        UserError: There is no such dataset, or it cannot be read.
    """
    train = open_dataset(
        args,
        args.data_dir,
        args.train_split,
        mode,
        is_training=True,
        batch_size=args.batch_size,
        num_samples=args.train_num_samples,
        repeats=args.epoch_repeats,
        seed=args.seed,
    )
    if not args.val_split:
        return train, None
    return train, open_dataset(
        args,
        args.data_dir,
        args.val_split,
        mode,
        is_training=False,
        batch_size=args.batch_size,
        num_samples=args.val_num_samples,
    )


def image_mode(args: argparse.Namespace, data_config: Dict[str, Any]) -> str:
    """Return the PIL mode to read images in: --input-img-mode, or the usual one for the channels of the model."""
    return args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')


def patch_size_of(model: nn.Module) -> Tuple[int, int]:
    """Return height and width of the patches of a model, 16 for one that does not tell."""
    return model.get_patch_size() if hasattr(model, 'get_patch_size') else (16, 16)


def open_dataset(args: argparse.Namespace, folder: Optional[str], split: str, mode: str, **options) -> Dataset:
    """Open a split of the dataset that the arguments name.

    Args:
        args: Arguments of the script.
        folder: Folder of the data.
        split: Name of the split.
        mode: PIL mode to read images in.
        **options: More arguments of `timm.data.create_dataset`.

    Raises:
        UserError: There is no such dataset, or it cannot be read.
    """
    if args.task == 'multilabel':
        options['target_transform'] = MultiLabelTarget(args.num_classes, dense=args.target_format == 'multihot')
        options['target_format'] = args.target_format
    check_source(args.dataset, folder)
    with user_errors(f'--dataset {args.dataset or folder}, split {split}', *MISFITS, ImportError):
        return create_dataset(
            args.dataset,
            root=folder,
            split=split,
            class_map=args.class_map,
            download=args.dataset_download,
            input_img_mode=mode,
            input_key=args.input_key,
            target_key=args.target_key,
            trust_remote_code=args.dataset_trust_remote_code,
            **options,
        )


def check_source(dataset: str, folder: Optional[str]) -> None:
    """Check that there is something to read.

    Raises:
        UserError: Neither a dataset nor a folder is named, or there is no such folder.
    """
    if not dataset and not folder:
        raise UserError('--data-dir or --dataset must name the images.')
    if not dataset and not os.path.exists(folder):
        raise UserError(f"--data-dir: there is no '{folder}'.")
