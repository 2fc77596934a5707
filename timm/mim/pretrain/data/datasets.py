"""Choose the training images and the held-out images of a run, and their mode, size and normalisation."""

import copy
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch.nn as nn
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from timm.data import ImageDataset, create_dataset, resolve_data_config
from timm.data.loader import adapt_to_chs
from ..errors import UserError, flag_name, one_line
from ..flags.run_options import DEFAULTS, RunOptions
from .bands import check_shown_bands, measure_bands
from .formats import BANDS, readable_suffixes, use_readable_suffixes
from .image_folder import ImageFolder, check_archive, draw_held_out, image_names, left_out_of_archive, shared_files
from .samples import PHOTOGRAPHS, Samples, is_sample, open_samples
from .shards import open_hub_shards, open_tar_shards
from .streams import EncodedImages, Stream, count_samples, describe_readers, first_held_out

_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}

_logger = logging.getLogger(__name__)
HELD_OUT_SHARE = 0.05  # of a folder without a validation split
HELD_OUT_LIMIT = 256  # maximum number of images for the held-out error
_STREAM_SHARE = 0.01  # least share of a long stream that is held out: fewer keys would take long to find
_STREAMS = ('wds', 'hfids')
_SOURCES = ('hfds', 'hfids', 'tfds', 'wds', 'torch')
_ONLY_WITH_DATASET = ('train_num_samples', 'val_num_samples', 'target_key', 'dataset_download')
_TRAINING_FOLDERS = ('train', 'training')
_VALIDATION_FOLDERS = ('validation', 'val', 'valid', 'eval', 'evaluation')


def image_mode(in_chans: int, mode: Optional[str] = None) -> str:
    """Return the PIL mode to convert images to, or `bands` to read arrays of any number of bands in their own units.

    Args:
        in_chans: Number of input channels of the model.
        mode: Mode that the user chose; None for the usual one: L, LA, RGB or RGBA for one to four channels, otherwise
            `bands`.

    Raises:
        UserError: PIL has no such mode, or the mode has another number of channels.
    """
    if mode is None or mode == BANDS:
        return mode or _MODES.get(in_chans, BANDS)
    try:
        bands = len(Image.new(mode, (1, 1)).getbands())
    except ValueError:
        raise UserError(f"--input-img-mode: no mode '{mode}'; give L, RGB, RGBA or bands, for example.") from None
    if bands != in_chans:
        raise UserError(f'--input-img-mode {mode} has {bands} channel(s), the model takes {in_chans}.')
    return mode


def measure_statistics(options: RunOptions, train: Dataset, mode: str) -> str:
    """Measure mean and standard deviation of bands, and set both in the options, unless the user gave them.

    They then hold for the whole run: checkpoints and args.yaml store them, and so does the encoder's configuration.

    Args:
        options: Options of the run, which change.
        train: Training images.
        mode: Mode of the images. Statistics of photographs come from the model.

    Returns:
        One line that says what was measured; empty if nothing was.

    Raises:
        UserError: Only one of --mean and --std is given, or they cannot be measured.
    """
    if mode != BANDS or None not in (options.mean, options.std):
        return ''
    if (options.mean, options.std) != (None, None):
        raise UserError('--mean and --std belong together: give both, or neither to measure them.')
    options.mean, options.std, count = measure_bands(train, options.in_chans, max_pixels=options.max_pixels)
    options.mean, options.std = list(options.mean), list(options.std)
    return f'mean and standard deviation of {options.in_chans} bands measured on {count} images'


def resolve_image_config(options: RunOptions, method: nn.Module, mode: str) -> Dict[str, Any]:
    """Return input size, mean, standard deviation, interpolation, crop and mode of the images.

    For images of bands it also has `bands`, those that pictures show, and with --naflex-loader `patch_size`.

    Args:
        options: Options of the run.
        method: Method. It determines the image size; its backbone has the defaults of the other values.
        mode: PIL mode of the images.
    """
    config = resolve_data_config(
        dict(
            input_size=(options.in_chans, *method.img_size),
            mean=options.mean,
            std=options.std,
            interpolation=options.interpolation,
            crop_pct=options.crop_pct,
        ),
        model=method.backbone,
    )
    if mode != BANDS:
        if options.mim_bands:
            raise UserError('--mim-bands chooses what pictures show of images of --input-img-mode bands.')
        config = {**with_statistics_per_channel(config), 'mode': mode}
        return {**config, 'patch_size': tuple(method.patch_stride)} if options.naflex_loader else config
    if options.naflex_loader:
        raise UserError('--naflex-loader does not read images of --input-img-mode bands: leave one of them out.')
    return {**config, 'mode': mode, 'bands': check_shown_bands(options.mim_bands, options.in_chans)}


def with_statistics_per_channel(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return a data configuration whose mean and standard deviation have one value per channel.

    If the number of values differs from the number of channels, each channel gets the average of the values.
    """
    channels = config['input_size'][0]
    adapted = {
        name: adapt_to_chs(sum(config[name]) / len(config[name]), channels)
        for name in ('mean', 'std') if len(config[name]) != channels}
    return {**config, **adapted}


class PretrainData(NamedTuple):
    """The datasets of a run, and one line that describes where the images come from."""
    train: Dataset
    held_out: Dataset
    description: str


class DecodedImages(Dataset):
    """A few images, decoded once, because decoding a photograph takes much longer than cropping it.

    Args:
        samples: Images with their names.
        mode: PIL mode to convert images to.
    """

    def __init__(self, samples: Samples, mode: str):
        self.names = samples.names
        self.images = [image.convert(mode) for image in samples.images]
        self.transform = None

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), 0

    def __len__(self) -> int:
        return len(self.images)


def open_data(options: RunOptions, mode: str) -> PretrainData:
    """Open the training images and the held-out images.

    Args:
        options: Options of the run.
        mode: PIL mode to convert images to.

    Raises:
        UserError: There are no images, too few to hold any out, or an option does not fit the dataset.
    """
    if is_sample(options.dataset) or not (options.data_dir or options.dataset):
        return _open_samples(options, mode)
    folder = not options.dataset
    if options.data_dir and folder:
        check_folder(options.data_dir)
        _check_split(options)
    _check_name(options.dataset)
    use_readable_suffixes(mode)
    if is_stream(options.dataset):
        return _open_stream(options, mode)
    train = _create_dataset(options, options.train_split, mode, is_training=True)
    if folder:
        return _open_folder(options, train, mode)
    if options.val_split == '':
        return _without_held_out(options, train)
    held_out = _create_dataset(options, options.val_split or 'validation', mode, is_training=False)
    if getattr(train, 'samples', None) and train.samples == getattr(held_out, 'samples', None):  # torch/image_folder
        raise UserError(
            f"--dataset {options.dataset}: '{options.data_dir}' has no separate folder for validation, so the training "
            'images would also be held out. Leave out --dataset to hold out a share of the folder.')
    return PretrainData(
        train, held_out, f'{options.dataset}: {options.train_split} to train on, '
        f'{options.val_split or "validation"} held out')


def open_to_measure(options: RunOptions, mode: str) -> Tuple[Dataset, str]:
    """Open images for evaluation: the validation split of a folder if it has one, otherwise all of its images.

    Args:
        options: Options of the run, with the images to evaluate on.
        mode: PIL mode to convert images to.

    Returns:
        The images, and one line that describes where they come from.

    Raises:
        UserError: The images cannot be opened.
    """
    if is_sample(options.dataset):
        split = options.val_split or 'validation'
        return DecodedImages(open_samples(options.dataset, split), mode), f'{options.dataset}: {split}'
    _check_name(options.dataset)
    if options.dataset:
        split = options.val_split or 'validation'
        if is_stream(options.dataset):
            shards = _open_shards(options, split, mode)
            if shards is None:
                raise UserError(f"--split: {options.dataset} has no split '{split}'.")
            return first_held_out(shards, 1., options.val_num_samples or HELD_OUT_LIMIT), f'{options.dataset}: {split}'
        return _create_dataset(options, split, mode, is_training=False), f'{options.dataset}: {split}'
    if not options.data_dir:
        raise UserError('--split needs --data-dir or --dataset, and neither is given.')
    check_folder(options.data_dir)
    use_readable_suffixes(mode)
    folder = _validation_folder(options) or options.data_dir
    options = replace(options, data_dir=str(folder))
    dataset = _create_dataset(options, '', mode, is_training=False)
    return dataset, '; '.join([str(folder), *_left_out(dataset)])


def _open_samples(options: RunOptions, mode: str) -> PretrainData:
    dataset, split = options.dataset or PHOTOGRAPHS, options.val_split or 'validation'
    train, held_out = (open_samples(dataset, name) for name in (options.train_split, split))
    named = options.dataset or f'no data named: {PHOTOGRAPHS}'
    shown = f' ({", ".join(held_out.names)})' if len(held_out.names) < 5 else ''
    return PretrainData(
        DecodedImages(train, mode),
        DecodedImages(held_out, mode),
        f'{named}: {len(train.images)} images to train on, {len(held_out.images)} more held out{shown}')


def is_stream(dataset: str) -> bool:
    """Return whether the name of a dataset stands for a stream that is read shard by shard."""
    return dataset.partition('/')[0].lower() in _STREAMS and '/' in dataset


def _open_shards(options: RunOptions, split: str, mode: str):
    """Open the shards of a split of a stream; None if there is no such split."""
    source, _, name = options.dataset.partition('/')
    if source.lower() == 'wds':
        return open_tar_shards(options.data_dir, name, split, options.input_key, mode)
    return open_hub_shards(options.data_dir, name, split, options.input_key, options.dataset_trust_remote_code)


def _open_stream(options: RunOptions, mode: str) -> PretrainData:
    """Open a stream, and hold out its validation split, a share of its keys, or nothing."""
    shards = _open_shards(options, options.train_split, mode)
    if shards is None:
        raise UserError(f"--train-split: {options.dataset} has no split '{options.train_split}'.")
    number = count_samples(shards, options.train_num_samples)
    name = f'{options.dataset}: {number} images in {len(shards)} shard{"" if len(shards) == 1 else "s"}'
    others = _open_shards(options, options.val_split or 'validation', mode) if options.val_split != '' else None
    if options.val_split and others is None:
        raise UserError(f"--val-split: {options.dataset} has no split '{options.val_split}'.")
    share = 0. if options.val_split == '' or others is not None else min(
        HELD_OUT_SHARE, max(_STREAM_SHARE, HELD_OUT_LIMIT / number))
    if others is not None:
        held_out = first_held_out(others, 1., HELD_OUT_LIMIT)
        said = f'the first {len(held_out)} of {options.val_split or "validation"} held out'
    elif share:
        held_out = first_held_out(shards, share, HELD_OUT_LIMIT)
        while not len(held_out) and share < 0.5:  # a few images may have no key in a small share
            share *= 2
            held_out = first_held_out(shards, share, HELD_OUT_LIMIT)
        said = f'no validation split, so {share:.1%} of the keys are held out, and {len(held_out)} of them measured'
    else:
        held_out = first_held_out(shards, 1., HELD_OUT_LIMIT)
        said = _nothing_held_out(len(held_out))
    if not len(held_out):
        raise UserError(f'--dataset {options.dataset}: there is no image to hold out.')
    train = Stream(shards, number - round(share * number), share, options.workers)
    return PretrainData(train, held_out, '; '.join(filter(None, (name, said, describe_readers(train)))))


def _nothing_held_out(count: int) -> str:
    return f'no image is held out: what is called held out below is measured on {count} images of the training split'


def _without_held_out(options: RunOptions, train: Dataset) -> PretrainData:
    """Measure on a few training images."""
    if isinstance(train, IterableDataset):
        raise UserError(f"--val-split '': {options.dataset} cannot be measured without a validation split.")
    spacing = -(-len(train) // HELD_OUT_LIMIT)
    measured = select(train, range(0, len(train), spacing))
    name = options.dataset or options.data_dir
    return PretrainData(
        copy.copy(train), measured,
        '; '.join([f'{name}: {len(train)} images', _nothing_held_out(len(measured)), *_left_out(train)]))


def check_folder(path: str) -> None:
    """Check that a path is a folder or a complete .tar file.

    Raises:
        UserError: The path is neither.
    """
    if not os.path.exists(path):
        raise UserError(f"--data-dir: '{path}' does not exist.")
    if os.path.isdir(path):
        return
    if not os.path.isfile(path) or not path.endswith('.tar'):
        raise UserError(f"--data-dir: '{path}' is neither a folder nor a .tar file.")
    check_archive(path)


def _check_name(name: str) -> None:
    # timm treats any other name as a folder, and reads the whole folder for every split
    if name and name.partition('/')[0].lower() not in _SOURCES:
        raise UserError(
            f"--dataset: '{name}' must begin with {', '.join(f'{source}/' for source in _SOURCES)}; for a folder of "
            'images give --data-dir without --dataset.')


def _check_split(options: RunOptions) -> None:
    # If a split does not exist, timm reads the whole folder. That is right only for the default name.
    split = options.train_split
    if split != DEFAULTS['train_split'] and not (Path(options.data_dir) / split).is_dir():
        raise UserError(f"--train-split: there is no folder '{split}' in '{options.data_dir}'.")


def _create_dataset(options: RunOptions, split: str, mode: str, is_training: bool) -> Dataset:
    flag = '--train-split' if is_training else '--val-split'
    num_samples = options.train_num_samples if is_training else options.val_num_samples
    if not options.dataset:
        for name in _ONLY_WITH_DATASET:
            if is_training and getattr(options, name):
                raise UserError(f'{flag_name(name)} is for --dataset, which is not given.')
        if os.path.isdir(options.data_dir):
            return _open_images(options, split, mode)
    left_out = '' if options.dataset else left_out_of_archive(options.data_dir, mode)
    try:
        dataset = create_dataset(
            options.dataset,
            root=options.data_dir,
            split=split,
            is_training=is_training,
            download=options.dataset_download,
            batch_size=options.batch_size,
            seed=options.seed,
            repeats=options.epoch_repeats,
            input_img_mode=mode,
            input_key=options.input_key,
            target_key=options.target_key,
            num_samples=num_samples,
            trust_remote_code=options.dataset_trust_remote_code,
        )
        if left_out:
            dataset.reader.left_out = left_out
        return dataset
    except Exception as e:  # every source raises its own types of errors
        if not options.dataset:
            raise UserError(f"--data-dir: '{options.data_dir}' cannot be read: {one_line(e)}") from e
        raise UserError(f"--dataset {options.dataset} with {flag} '{split}' cannot be read: {one_line(e)}") from e


def _open_images(options: RunOptions, split: str, mode: str) -> Dataset:
    """Open the folder of a split if there is one, otherwise the whole folder."""
    root = Path(options.data_dir)
    splits = _TRAINING_FOLDERS if split in _TRAINING_FOLDERS else (split,)
    root = next((root / name for name in (split, *splits) if name and (root / name).is_dir()), root)
    try:
        reader = ImageFolder(str(root), input_key=options.input_key, mode=mode)
        return ImageDataset(str(root), reader=reader, input_img_mode=mode)
    except RuntimeError:
        types = options.input_key.split(';') if options.input_key else sorted(readable_suffixes(mode))
        raise UserError(
            f"--data-dir: no image in '{options.data_dir}', which was searched for {', '.join(types)}.") from None


def _left_out(*datasets: Dataset) -> List[str]:
    """Return one phrase for each dataset whose reader left out files."""
    phrases = (getattr(getattr(dataset, 'reader', None), 'left_out', '') for dataset in datasets)
    return [phrase for phrase in phrases if phrase]


def _open_folder(options: RunOptions, train: Dataset, mode: str) -> PretrainData:
    """Hold out the validation split of a folder, or a share of its images if it has no such split."""
    if options.val_split == '':
        return _without_held_out(options, train)
    folder = _validation_folder(options)
    if folder is None:
        count = min(max(1, round(len(train) * HELD_OUT_SHARE)), HELD_OUT_LIMIT, len(train) - 1)
        train_indices, held_out_indices = draw_held_out(image_names(train), count)
        share = f'{len(held_out_indices)} of its {len(train)} images held out'
        if len(held_out_indices) == 0:
            raise UserError(f"--data-dir: '{options.data_dir}' has one image, and one must be held out: add more.")
        return PretrainData(
            select(train, train_indices),
            select(train, held_out_indices),
            '; '.join([f'{options.data_dir}: {share}', *_left_out(train)]),
        )

    held_out = _create_dataset(
        replace(options, data_dir=str(folder)), '', mode, is_training=False)
    # Without a folder for training, the reader lists the whole data folder, including the validation images.
    shared = shared_files(train.reader, held_out.reader)
    kept = sorted({*range(len(train))}.difference(shared))
    if not kept:
        raise UserError(f"--data-dir: '{options.data_dir}' has no images outside '{folder}', which is held out.")
    said = [f'{options.data_dir}: {len(kept)} images to train on, {len(held_out)} in {folder.name}/ held out']
    elsewhere = [i for i in shared if folder not in Path(train.reader.samples[i][0]).parents]
    if elsewhere:
        said.append(f'{len(elsewhere)} names of held-out images outside {folder.name}/ are not trained on')
    return PretrainData(select(train, kept), held_out, '; '.join(dict.fromkeys([*said, *_left_out(train, held_out)])))


def _validation_folder(options: RunOptions) -> Optional[Path]:
    root = Path(options.data_dir)
    if not root.is_dir():
        return None
    if options.val_split:
        folder = root / options.val_split
        if not folder.is_dir():
            raise UserError(f"--val-split: there is no folder '{options.val_split}' in '{root}'.")
        return folder
    return next((root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()), None)


def select(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Return a dataset with some of the images of another dataset, which does not change.

    For a folder this shortens the reader's file list: timm replaces an unreadable image by the next one in the list,
    which must not be an image of the other part.
    """
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if samples is None or len(samples) != len(dataset) or not isinstance(samples[0], tuple):
        return Subset(copy.copy(dataset), indices)  # a copy, because each part has its own transform
    dataset = copy.copy(dataset)
    dataset.reader = copy.copy(dataset.reader)
    dataset.reader.samples = [samples[i] for i in indices]
    if hasattr(dataset.reader, 'inodes'):
        dataset.reader.inodes = dataset.reader.inodes[list(indices)]
    return dataset


def file_names(dataset: Dataset, limit: int = HELD_OUT_LIMIT) -> List[str]:
    """Return the names of at most `limit` images of a dataset; empty if the dataset has no names."""
    if isinstance(dataset, (DecodedImages, EncodedImages)):
        return dataset.names[:limit]
    reader = getattr(dataset, 'reader', None)
    if isinstance(dataset, IterableDataset) or not hasattr(reader, 'filename'):
        return []
    return [reader.filename(i) for i in range(min(len(dataset), limit))]
