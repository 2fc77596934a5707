"""Probe a frozen encoder: compute features of labelled images, and measure the accuracy of classifiers on them.

The pre-training loss does not show how good the features are; the accuracy of simple classifiers does.
"""

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import Dataset

from timm.data import ImageDataset
from ...backbone import feature_map
from ...native_aspect import NaFlexBatch, naflex_images
from ..data.datasets import DecodedImages, select
from ..data.image_folder import ImageFolder, shared_files
from ..data.loading import create_evaluation_loader
from ..data.samples import is_sample, open_samples
from ..errors import UserError, one_line
from ..flags.run_options import RunOptions
from ..held_out import evaluating
from .classifiers import attentive_predict, knn_predict, linear_predict

LAST = 'last'
TOKENS = 'tokens'
Layer = Union[int, str]

_TRAIN = ('train', 'training')
_TEST = ('val', 'validation', 'valid', 'test', 'eval', 'evaluation')
_TEST_SHARE = 0.2  # of each class, if a folder has no test split
_SPLIT_SEED = 0  # the same for every seed of a run, so that runs are comparable

_logger = logging.getLogger(__name__)
_READABLE = 'readable'  # entry among the features: whether the image could be read
_PIXELS = 16  # maximum side of images for the pixel baseline
_MAX_TOKEN_BYTES = 32 * 2 ** 30  # in main memory


def count_layers(encoder: nn.Module, images: torch.Tensor) -> int:
    """Return the number of layers whose features can be read, 0 if only those of the last layer can.

    Args:
        encoder: Model without a classifier.
        images: Any images (B, C, H, W) of the model's input size.
    """
    if not hasattr(encoder, 'forward_intermediates'):
        return 0
    return len(encoder.forward_intermediates(images, intermediates_only=True))


def resolve_layers(layers: Sequence[str], count: int) -> List[Layer]:
    """Resolve the values of `--mim-probe-layers`: numbers from 1, `last`, `all`.

    Args:
        layers: Values that the user gave.
        count: Number of layers of the model.

    Raises:
        UserError: There is no such layer.
    """
    layers = [str(layer) for layer in layers]
    if layers == ['all']:
        return [*range(1, count), LAST]
    found: List[Layer] = []
    for layer in layers:
        if layer != LAST and not (layer.isdecimal() and 1 <= int(layer) <= count):
            has = f'the model has layers 1 to {count}' if count else 'the model gives features of its last layer only'
            raise UserError(f"--mim-probe-layers: there is no layer '{layer}'; {has}; last and all always work.")
        found.append(LAST if layer == LAST else int(layer))
    return list(dict.fromkeys(found))


def read_features(
        encoder: nn.Module,
        images: torch.Tensor,
        layers: Sequence[Layer],
        average: bool = False,
        tokens: bool = False,
) -> Dict[Layer, torch.Tensor]:
    """Compute features of images.

    The model itself pools its last layer. Other layers give their class token if the model pools to the class token,
    otherwise the average over patches.

    Args:
        encoder: Model without a classifier.
        images: Normalised images (B, C, H, W), or a NaFlex batch, of which only the last layer can be read.
        layers: Numbers of layers from 1, or `last`.
        average: Average over patches in every layer, however the model pools.
        tokens: Also return the patch tokens of the last layer.

    Returns:
        Features (B, D) by layer, and tokens (B, N, D) under `tokens` if requested.
    """
    features: Dict[Layer, torch.Tensor] = {}
    if LAST in layers and not average:
        features[LAST] = _flat(encoder(images))
    if isinstance(images, dict):
        if average:
            features[LAST] = _mean_of_valid(encoder, images)
        return {name: value.float() for name, value in features.items()}
    if tokens or (LAST in layers and average):
        last_map = feature_map(encoder, images)
        if average and LAST in layers:
            features[LAST] = last_map.mean((2, 3))
        if tokens:
            features[TOKENS] = last_map.flatten(2).transpose(1, 2)
    features.update(_read_intermediates(encoder, images, [n for n in layers if n != LAST], average))
    return {name: value.float() for name, value in features.items()}


def _read_intermediates(
        encoder: nn.Module,
        images: torch.Tensor,
        numbers: Sequence[int],
        average: bool,
) -> Dict[Layer, torch.Tensor]:
    if not numbers:
        return {}
    allowed = inspect.signature(encoder.forward_intermediates).parameters
    class_token = not average and getattr(encoder, 'global_pool', None) == 'token' and 'return_prefix_tokens' in allowed
    options = dict(norm=True) if 'norm' in allowed else {}
    if class_token:
        options['return_prefix_tokens'] = True
    outputs = encoder.forward_intermediates(
        images, indices=[number - 1 for number in numbers], output_fmt='NCHW', intermediates_only=True, **options)
    if class_token:
        return {number: prefix[:, 0] for number, (_, prefix) in zip(numbers, outputs)}
    return {number: output.mean((2, 3)) for number, output in zip(numbers, outputs)}


def _mean_of_valid(encoder: nn.Module, images: Dict[str, torch.Tensor]) -> torch.Tensor:
    """Average the features of the patches of each image of a NaFlex batch, without prefix tokens and padding."""
    patches = encoder.forward_features(images)['patches'][:, encoder.num_prefix_tokens:]
    valid = images['patch_valid'].unsqueeze(-1)
    return torch.where(valid, patches, 0.).sum(1) / valid.sum(1)


def _flat(features: torch.Tensor) -> torch.Tensor:
    """Average the output of a model without pooling, a map (B, D, H, W) or tokens (B, N, D), to features (B, D)."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


class LabelledImages(NamedTuple):
    """Images and their class numbers (N,)."""
    images: Dataset
    labels: torch.Tensor


class ProbeData(NamedTuple):
    """Images to fit and to test probes, the names of the classes, and phrases that say which images were left out."""
    train: LabelledImages
    test: LabelledImages
    classes: List[str]
    left_out: List[str]


def open_probe_data(folder: str, mode: str, split: str = 'validation') -> ProbeData:
    """Open labelled images: a folder with `train` and `val`, each with one folder per class, or class folders alone.

    Without `train` and `val`, a fifth of each class, at least one image, is the test set, the same in every run.

    Args:
        folder: Folder with labelled images, or the name of sample images that have labels.
        mode: PIL mode to convert images to.
        split: Split of sample images to test on.

    Raises:
        UserError: The folder is missing, has another structure, or has too few images.
    """
    if is_sample(folder):
        return _open_samples(folder, mode, split)
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--mim-probe-dir: there is no folder '{folder}'.")
    train, test = (_first_folder(root, names) for names in (_TRAIN, _TEST))
    if (train is None) != (test is None):
        raise UserError(
            f"--mim-probe-dir: '{folder}' has {(train or test).name}/ but not its counterpart; give both train/ and "
            'val/, or class folders alone.')
    if train is None:
        return _split(folder, mode)
    classes = _class_numbers(train, mode)
    unknown = _class_numbers(test, mode).keys() - classes.keys()
    if unknown:
        raise UserError(f"--mim-probe-dir: '{test}' has the class {min(unknown)}, which '{train}' lacks.")
    fit, held_out = _open(train, mode, classes), _open(test, mode, classes)
    left_out = [images.images.reader.left_out for images in (fit, held_out)]
    shared = set(shared_files(fit.images.reader, held_out.images.reader))
    if shared:
        if len(shared) == len(fit.labels):
            raise UserError(f"--mim-probe-dir: all images in '{train}' are also in '{test}', through links.")
        fit = _take(fit, [i for i in range(len(fit.labels)) if i not in shared])
        left_out.append(f'left out {len(shared)} images in {train.name}/ that are also in {test.name}/')
    return ProbeData(fit, held_out, list(classes), [phrase for phrase in left_out if phrase])


def _open_samples(name: str, mode: str, split: str) -> ProbeData:
    train, test = (open_samples(name, part) for part in ('train', split))
    if train.labels is None:
        raise UserError(f"--mim-probe-dir: '{name}' has no labels.")
    fit, tested = (
        LabelledImages(DecodedImages(samples, mode), torch.tensor(samples.labels)) for samples in (train, test))
    return ProbeData(fit, tested, [str(label) for label in sorted(set(train.labels))], left_out=[])


def _first_folder(root: Path, names: Tuple[str, ...]) -> Optional[Path]:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_numbers(folder: Path, mode: str) -> Dict[str, int]:
    try:
        classes = ImageFolder(str(folder), mode=mode).class_to_idx
    except RuntimeError:
        raise UserError(f"--mim-probe-dir: no image in '{folder}'.") from None
    if len(classes) < 2:
        raise UserError(f"--mim-probe-dir: '{folder}' must hold a folder per class, of two classes or more.")
    return classes


def _open(folder: Path, mode: str, classes: Dict[str, int]) -> LabelledImages:
    reader = ImageFolder(str(folder), class_map=classes, mode=mode)
    dataset = ImageDataset(str(folder), reader=reader, input_img_mode=mode)
    return LabelledImages(dataset, torch.tensor([label for _, label in dataset.reader.samples]))


def _split(folder: str, mode: str) -> ProbeData:
    classes = _class_numbers(Path(folder), mode)
    whole = _open(Path(folder), mode, classes)
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = []
    for name, number in classes.items():
        members = rng.permutation(torch.nonzero(whole.labels == number).flatten().numpy())
        if len(members) < 2:
            raise UserError(f"--mim-probe-dir: class {name} in '{folder}' has one image; two or more are needed.")
        chosen.extend(members[:max(1, round(len(members) * _TEST_SHARE))].tolist())
    tested = set(chosen)
    return ProbeData(
        _take(whole, [i for i in range(len(whole.labels)) if i not in tested]),
        _take(whole, sorted(tested)),
        list(classes),
        [phrase for phrase in [whole.images.reader.left_out] if phrase],
    )


def _take(labelled: LabelledImages, indices: List[int]) -> LabelledImages:
    return LabelledImages(select(labelled.images, indices), labelled.labels[indices])


class Probes:
    """Probes an encoder on labelled images.

    Every process computes the features of its share of the images; the first process fits and tests the classifiers.

    Attributes:
        names: Names of the accuracies, such as `knn_top1` or `linear_top1_layer6`.
        description: One line about the probes and their images.
        num_tested: Number of images that the probes are tested on.

    Args:
        options: Options of the run.
        method: Method whose encoder is probed.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        process: Device and rank of this process.

    Raises:
        UserError: The labelled images cannot be opened, the encoder cannot be probed, or there is no such layer.
    """

    def __init__(
            self,
            options: RunOptions,
            method: nn.Module,
            data_config: Dict[str, Any],
            process: argparse.Namespace,
    ):
        self.options = options
        self.data_config = data_config
        self.process = process
        self.device = torch.device(process.device)
        self.data = open_probe_data(
            options.mim_probe_dir, data_config['mode'], options.val_split or 'validation')
        self.average = options.mim_probe_pool == 'avg'
        self.layers = self._check_encoder(method)
        self.names = [name for kind in options.mim_probe for name in self._names(kind)]
        train, test, classes, left_out = self.data
        self.num_tested = len(test.labels)
        largest = torch.bincount(test.labels).max() / len(test.labels)
        self.description = (
            f'{", ".join(self.names)} on {options.mim_probe_dir}: {len(train.labels)} images to fit, '
            f'{len(test.labels)} to test, {len(classes)} classes; the most frequent class alone gives '
            f'{100 * largest:.1f} %'
            + ''.join(f'; {phrase}' for phrase in left_out))

    def _names(self, kind: str) -> List[str]:
        layers = [LAST] if kind == 'attentive' else self.layers
        return [f'{kind}_top1' if layer == LAST else f'{kind}_top1_layer{layer}' for layer in layers]

    @torch.no_grad()
    def _check_encoder(self, method: nn.Module) -> List[Layer]:
        """Compute the features of one image to check the requested layers before the run begins, and return them.

        Raises:
            UserError: The encoder cannot be probed like this, or tokens would need too much memory.
        """
        options = self.options
        image = torch.zeros(1, *self.data_config['input_size'], device=self.device)

        def first(encoder: nn.Module) -> Tuple[List[Layer], Dict[Layer, torch.Tensor]]:
            needs_count = list(options.mim_probe_layers) != [LAST]
            layers = resolve_layers(options.mim_probe_layers, count_layers(encoder, image) if needs_count else 0)
            return layers, read_features(encoder, image, layers, self.average, 'attentive' in options.mim_probe)
        try:
            with evaluating(method):
                layers, features = method.apply_to_encoder(first)
        except UserError:
            raise
        except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
            raise UserError(f'--mim-probe: {options.model} cannot be probed with these options: {one_line(e)}') from e
        if TOKENS in features:
            size = features[TOKENS].numel() * 2 * (len(self.data.train.labels) + len(self.data.test.labels))
            if size > _MAX_TOKEN_BYTES:
                raise UserError(
                    f'--mim-probe attentive: the tokens of all images need {size / 1e9:.0f} GB of main memory; put '
                    'fewer images into --mim-probe-dir.')
        return layers

    def measure(self, method: nn.Module, autocast: Callable) -> Dict[str, float]:
        """Return the accuracies in percent by name, empty on all processes but the first.

        Args:
            method: Method whose encoder is probed.
            autocast: Creates the autocast context of a forward pass.
        """
        asked = {
            name: (kind, layer) for kind in self.options.mim_probe
            for name, layer in zip(self._names(kind), [TOKENS] if kind == 'attentive' else self.layers)}
        with evaluating(method):
            found = self._accuracies(asked, self._reader(method, autocast))
        if found:
            _logger.info('probes: ' + ', '.join(f'{name} {value:.1f} %' for name, value in found.items()))
        return found

    def measure_pixels(self) -> Dict[str, float]:
        """Return the accuracies in percent of the same classifiers on pixels, without attentive, which needs tokens.

        Larger images are averaged down to 16 pixels per side, because fitting would take longer than training.
        """
        asked = {f'{kind}_top1': (kind, LAST) for kind in self.options.mim_probe if kind != 'attentive'}

        def read(images: torch.Tensor) -> Dict[Layer, torch.Tensor]:
            if isinstance(images, dict):
                return {LAST: self._squares(images).flatten(1)}
            size = [min(side, _PIXELS) for side in images.shape[2:]]
            return {LAST: F.adaptive_avg_pool2d(images, size).flatten(1)}
        return self._accuracies(asked, read) if asked else {}

    def _squares(self, images: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Average the pixels of each image of a NaFlex batch to a square (B, C, 16, 16), whatever its shape."""
        batch = NaFlexBatch(*(images[name] for name in ('patches', 'patch_coord', 'patch_valid')))
        pictures = naflex_images(batch.patches, batch, self.data_config['patch_size'])
        return torch.stack([F.adaptive_avg_pool2d(picture, _PIXELS) for picture in pictures])

    def _reader(self, method: nn.Module, autocast: Callable) -> Callable[[torch.Tensor], Dict[Layer, torch.Tensor]]:
        """Return a function that computes the features of images by layer."""
        def read(images: torch.Tensor) -> Dict[Layer, torch.Tensor]:
            with autocast():
                return method.apply_to_encoder(
                    read_features, images, self.layers, self.average, 'attentive' in self.options.mim_probe)
        return read

    def _accuracies(
            self,
            asked: Dict[str, Tuple[str, Layer]],
            read: Callable[[torch.Tensor], Dict[Layer, torch.Tensor]],
    ) -> Dict[str, float]:
        """Fit and test classifiers on the features that `read` computes.

        Returns:
            Accuracies in percent by name, empty on all processes but the first.
        """
        train, train_labels = self._features(self.data.train, read)
        test, test_labels = self._features(self.data.test, read)
        if not train:
            return {}
        found = {}
        for name, (kind, layer) in asked.items():
            predicted = self._predict(kind, train[layer], train_labels, test[layer])
            found[name] = 100 * (predicted == test_labels).double().mean().item()
        return found

    def _predict(self, kind: str, train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
        num_classes = len(self.data.classes)
        if kind == 'attentive':
            return attentive_predict(train, labels, test, num_classes, self.device)
        predict = knn_predict if kind == 'knn' else linear_predict
        return predict(train.to(self.device), labels.to(self.device), test.to(self.device), num_classes).cpu()

    @torch.no_grad()
    def _features(
            self,
            labelled: LabelledImages,
            read: Callable[[torch.Tensor], Dict[Layer, torch.Tensor]],
    ) -> Tuple[Dict[Layer, torch.Tensor], torch.Tensor]:
        """Return the features by layer, empty on all processes but the first, and the labels of all readable images."""
        process, options = self.process, self.options
        # every process runs the same number of batches, because a sharded model gathers its shards on all together
        share = -(-len(labelled.labels) // process.world_size)
        indices = [min(n * process.world_size + process.rank, len(labelled.labels) - 1) for n in range(share)]
        loader = create_evaluation_loader(labelled.images, indices, options, self.data_config, self.device)
        parts: Dict[Layer, List[torch.Tensor]] = {}
        for images, index in loader:
            for layer, values in {**read(images), _READABLE: index >= 0}.items():
                # tokens in half precision, because they need the most memory
                parts.setdefault(layer, []).append(values.cpu().half() if layer == TOKENS else values.cpu())
        shares = self._gather({layer: torch.cat(values) for layer, values in parts.items()})
        if not shares:
            return {}, labelled.labels
        # image n has index n // world_size on process n % world_size
        features = {
            layer: torch.stack([part[layer] for part in shares], dim=1).flatten(0, 1)[:len(labelled.labels)]
            for layer in shares[0]
        }
        readable = features.pop(_READABLE)
        return {layer: values[readable] for layer, values in features.items()}, labelled.labels[readable]

    def _gather(self, features: Dict[Layer, torch.Tensor]) -> List[Dict[Layer, torch.Tensor]]:
        """Gather the features of all processes on the first one; other processes get an empty list."""
        if not self.process.distributed:
            return [features]
        gathered = [None] * self.process.world_size if self.process.rank == 0 else None
        dist.gather_object(features, gathered, dst=0)
        return gathered or []
