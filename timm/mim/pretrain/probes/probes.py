"""Is it learning? Accuracy of simple classifiers on the frozen encoder, since a pre-training loss does not tell."""
import argparse
import logging
from typing import Any, Callable, Dict, List, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from ..data.loading import create_evaluation_loader
from ..errors import UserError, one_line
from ..held_out import evaluating
from .attentive import attentive_predict
from .features import LAST, TOKENS, Layer, count_layers, read_features, resolve_layers
from .knn import knn_predict
from .labelled import LabelledImages, open_probe_data
from .linear import linear_predict

_logger = logging.getLogger(__name__)

_READABLE = 'readable'  # among the features, whether there is an image behind them
_PIXELS = 16  # a side, of the images that classifiers are fitted on directly
_MAX_TOKEN_BYTES = 32 * 2 ** 30  # of main memory


class Probes:
    """Probes of an encoder on labelled images.

    Every process computes the features of its share of the images, the first one fits and tests the classifiers.

    Attributes:
        names: Names of the accuracies, as `knn_top1` or `linear_top1_layer6`.
        description: One line that says what is asked.

    Args:
        options: Options of the run.
        method: Method whose encoder is probed.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        place: Device and rank of this process.

    Raises:
        UserError: There are no labelled images, or no such layer.
    """

    def __init__(
            self,
            options: argparse.Namespace,
            method: nn.Module,
            data_config: Dict[str, Any],
            place: argparse.Namespace,
    ):
        self.options = options
        self.data_config = data_config
        self.place = place
        self.device = torch.device(place.device)
        self.data = open_probe_data(
            options.mim_probe_dir, data_config['mode'], options.val_split or 'validation')
        self.average = options.mim_probe_pool == 'avg'
        self.layers = self._check_encoder(method)
        self.names = [name for kind in options.mim_probe for name in self._names(kind)]
        train, test, classes, left_out = self.data
        largest = torch.bincount(test.labels).max() / len(test.labels)
        self.description = (
            f'{", ".join(self.names)} on {options.mim_probe_dir}: {len(train.labels)} images to fit, '
            f'{len(test.labels)} to test, {len(classes)} classes; always the most frequent: {100 * largest:.1f} %'
            + ''.join(f'; {phrase}' for phrase in left_out))

    def _names(self, kind: str) -> List[str]:
        layers = [LAST] if kind == 'attentive' else self.layers
        return [f'{kind}_top1' if layer == LAST else f'{kind}_top1_layer{layer}' for layer in layers]

    @torch.no_grad()
    def _check_encoder(self, method: nn.Module) -> List[Layer]:
        """Read the layers that are asked for, by a first image, before the run begins."""
        options = self.options
        image = torch.zeros(1, *self.data_config['input_size'], device=self.device)

        def first(encoder: nn.Module) -> Tuple[List[Layer], Dict[Layer, torch.Tensor]]:
            needs_count = list(options.mim_probe_layers) != [LAST]
            layers = resolve_layers(options.mim_probe_layers, count_layers(encoder, image) if needs_count else 0)
            return layers, read_features(encoder, image, layers, self.average, 'attentive' in options.mim_probe)
        try:
            with evaluating(method):
                layers, features = method.apply_to_encoder(first)
        except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
            raise UserError(f'--mim-probe: {options.model} cannot be probed like that: {one_line(e)}') from e
        if TOKENS in features:
            size = features[TOKENS].numel() * 2 * (len(self.data.train.labels) + len(self.data.test.labels))
            if size > _MAX_TOKEN_BYTES:
                raise UserError(
                    f'--mim-probe attentive: the tokens of all images take {size / 1e9:.0f} GB of main memory; give '
                    f'--mim-probe-dir fewer images.')
        return layers

    def measure(self, method: nn.Module, autocast: Callable) -> Dict[str, float]:
        """Return the accuracies in percent by name, empty on all processes but the first.

        Args:
            method: Method whose encoder is probed.
            autocast: Context of mixed precision.
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
        """Return the accuracies in percent of the same classifiers on pixels, but for attentive, which needs tokens.

        Images of more than 16 pixels a side are averaged down to that, or fitting takes longer than training.
        """
        asked = {f'{kind}_top1': (kind, LAST) for kind in self.options.mim_probe if kind != 'attentive'}

        def read(images: torch.Tensor) -> Dict[Layer, torch.Tensor]:
            size = [min(side, _PIXELS) for side in images.shape[2:]]
            return {LAST: F.adaptive_avg_pool2d(images, size).flatten(1)}
        return self._accuracies(asked, read) if asked else {}

    def _reader(self, method: nn.Module, autocast: Callable) -> Callable[[torch.Tensor], Dict[Layer, torch.Tensor]]:
        """Return what computes the features of images by layer."""
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
        """Fit and test classifiers on what `read` makes of images, by name; empty on all processes but the first."""
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
        """Features by layer, empty on all processes but the first, and labels, of the images that can be read."""
        place, options = self.place, self.options
        # the same number of batches on every process: shards of a model are gathered together
        share = -(-len(labelled.labels) // place.world_size)
        indices = [min(n * place.world_size + place.rank, len(labelled.labels) - 1) for n in range(share)]
        loader = create_evaluation_loader(labelled.images, indices, options, self.data_config, self.device)
        parts: Dict[Layer, List[torch.Tensor]] = {}
        for images, index in loader:
            for layer, values in {**read(images), _READABLE: index >= 0}.items():
                # tokens are many
                parts.setdefault(layer, []).append(values.cpu().half() if layer == TOKENS else values.cpu())
        shares = self._gather({layer: torch.cat(values) for layer, values in parts.items()})
        if not shares:
            return {}, labelled.labels
        # image n is the n // world_size-th of process n % world_size
        features = {
            layer: torch.stack([part[layer] for part in shares], dim=1).flatten(0, 1)[:len(labelled.labels)]
            for layer in shares[0]
        }
        readable = features.pop(_READABLE)
        return {layer: values[readable] for layer, values in features.items()}, labelled.labels[readable]

    def _gather(self, features: Dict[Layer, torch.Tensor]) -> List[Dict[Layer, torch.Tensor]]:
        """Bring the shares of all processes to the first one."""
        if not self.place.distributed:
            return [features]
        gathered = [None] * self.place.world_size if self.place.rank == 0 else None
        dist.gather_object(features, gathered, dst=0)
        return gathered or []
