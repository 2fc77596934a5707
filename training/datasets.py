"""Open datasets, and resolve the size, the mode and the normalisation of their images."""
import argparse
import logging
import os
from typing import Any, BinaryIO, Dict, Optional, Tuple

import torch.nn as nn
from torch.utils.data import Dataset

from timm.data import ImageDataset, MultiLabelTarget, create_dataset, resolve_data_config
from timm.data.readers.class_map import load_class_map
from timm.mim.pretrain.data import datasets as pretraining
from timm.mim.pretrain.data.bands import read_bands
from timm.mim.pretrain.data.decoding import ToMode, open_image
from timm.mim.pretrain.data.formats import BANDS, use_readable_suffixes
from timm.mim.pretrain.data.image_folder import ImageFolder
from timm.mim.pretrain.data.shards import INFO_FILES, open_tar_shards
from timm.data.dataset_factory import _search_split
from .errors import MISFITS, UserError, user_errors

_logger = logging.getLogger(__name__)


def resolve_image_config(args: argparse.Namespace, model: nn.Module, **options) -> Dict[str, Any]:
    """Resolve size, crop and normalisation of images from the arguments, otherwise from the model's configuration.

    Args:
        args: Arguments of the script.
        model: The model.
        **options: Options of `timm.data.resolve_data_config`.

    Raises:
        UserError: --mean or --std has neither one value nor one per channel.
    """
    with user_errors('--mean and --std take one number, or one per channel', AssertionError):
        config = resolve_data_config(vars(args), model=model, **options)
    if image_mode(args, config) == BANDS:
        return config
    return pretraining.with_statistics_per_channel(config)


def open_splits(args: argparse.Namespace, mode: str) -> Tuple[Dataset, Optional[Dataset]]:
    """Open the training split and the validation split, None for a run without validation.

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
    """Return the mode to read images in: --input-img-mode, otherwise that of pre-training for so many channels."""
    return pretraining.image_mode(data_config['input_size'][0], args.input_img_mode)


def patch_size_of(model: nn.Module) -> Tuple[int, int]:
    """Return the height and width of a model's patches, 16 if the model does not define them."""
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
    use_readable_suffixes()
    with user_errors(f'--dataset {args.dataset or folder}, split {split}', *MISFITS, ImportError):
        if not args.dataset and os.path.isdir(folder) and not options.get('load_bytes'):
            return _open_folder(args, folder, split, mode, options)
        if mode == BANDS:
            raise UserError(f"--input-img-mode bands reads folders, not '{args.dataset or folder}'.")
        return create_dataset(
            args.dataset,
            root=folder,
            split=_shards_of_split(args, folder, split) if args.dataset.lower() == 'wds/' else split,
            class_map=args.class_map,
            download=args.dataset_download,
            input_img_mode=mode,
            input_key=args.input_key,
            target_key=args.target_key,
            trust_remote_code=args.dataset_trust_remote_code,
            **options,
        )


def _shards_of_split(args: argparse.Namespace, folder: Optional[str], split: str) -> str:
    """Return the shards of a split of `wds/` and their number of images, as timm's reader takes them.

    timm finds the shards of a split in an info file. Without one, they are those that pre-training finds by their
    names.

    Raises:
        UserError: There is no such split.
    """
    if '.tar' in split or any(os.path.isfile(os.path.join(folder or '', name)) for name in INFO_FILES):
        return split
    shards = open_tar_shards(folder, '', split, args.input_key, 'RGB')
    if shards is None:
        without = ", or give --val-split '' to train without validation" if split == args.val_split else ''
        raise UserError(
            f"--dataset wds/: no shard in '{folder}' has '{split}' in its name: name its shards, as in "
            f"'{split}-{{00..09}}.tar|1000' for 1000 images{without}.")
    return f'{"::".join(map(os.path.abspath, shards.urls))}|{shards.num_samples or shards.count()}'


def _open_folder(args: argparse.Namespace, folder: str, split: str, mode: str, options: Dict[str, Any]) -> Dataset:
    """Open the folder of a split if there is one, otherwise the whole folder, and say what is not read."""
    classes = load_class_map(args.class_map) if args.class_map else None
    reader = ImageFolder(_search_split(folder, split), classes, args.input_key, mode)
    if reader.left_out:
        _logger.warning(f'{reader.root}: {reader.left_out}')
    dataset = LabelledFolder(reader.root, reader=reader, input_img_mode=mode)
    dataset.target_transform = options.get('target_transform')
    dataset.channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    dataset.exif_rotation = args.exif_rotation
    return dataset


class LabelledFolder(ImageDataset):
    """timm's dataset of a folder, which decodes images as pre-training does: 16 bits, EXIF rotation and bands.

    Like timm's, it takes the next image in place of one that cannot be read, with a warning.

    Attributes:
        channels: Number of channels.
        exif_rotation: Turn images as their EXIF orientation says.
    """
    channels = 3
    exif_rotation = False

    def _load_sample(self, index: int) -> Tuple[Any, Any]:
        for _ in range(self._max_retries):
            try:
                file, target = self.reader[index]
                image = self._decode(file)
                break
            except (OSError, ValueError) as e:
                _logger.warning(f'Skipped sample (index {index}, {self.filename(index)}). {e}')
                index = (index + 1) % len(self.reader)
        else:
            raise RuntimeError(f'Failed to load {self._max_retries} consecutive samples')
        if self.transform is not None:
            image = self.transform(image)
        if target is None:
            return image, -1
        return image, target if self.target_transform is None else self.target_transform(target)

    def _decode(self, file: BinaryIO) -> Any:
        if self.input_img_mode == BANDS:
            return read_bands(file, self.channels)
        return ToMode(self.input_img_mode)(open_image(file, self.exif_rotation))


def check_source(dataset: str, folder: Optional[str]) -> None:
    """Check that the user names images, and that their folder exists.

    Raises:
        UserError: The user names neither a dataset nor a folder, or the folder does not exist.
    """
    if not dataset and not folder:
        raise UserError('--data-dir or --dataset is required.')
    if not dataset and not os.path.exists(folder):
        raise UserError(f"--data-dir: there is no '{folder}'.")
