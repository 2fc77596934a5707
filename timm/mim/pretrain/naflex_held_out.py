"""Measure how well a method predicts held-out images that keep their aspect ratio."""
from collections import defaultdict
from typing import Callable, Dict, Iterator, List, Tuple

import torch

from timm.data.naflex_loader import NaFlexPrefetchLoader
from ..masking import keyed_noise
from ..native_aspect import NaFlexMethod, naflex_images
from ..output import View
from ..targets import masked_l1_loss
from .held_out import FILLS, HeldOutImages, evaluating

NaFlexImages = Dict[str, torch.Tensor]
_TENSORS = ('patches', 'patch_coord', 'patch_valid')


def read_naflex_images(loader: NaFlexPrefetchLoader) -> Tuple[NaFlexImages, torch.Tensor]:
    """Read all images of a loader into main memory.

    Args:
        loader: Loader that `create_naflex_evaluation_loader` returns.

    Returns:
        The readable images as one NaFlex batch, and which images are readable, of shape (N,) bool.
    """
    parts: Dict[str, List[torch.Tensor]] = {name: [] for name in _TENSORS}
    readable = [torch.empty(0, dtype=torch.bool)]
    for images, index in loader:
        readable.append(index.cpu() >= 0)
        for name in _TENSORS:
            parts[name].append(images[name].cpu()[readable[-1]])
    return {name: torch.cat(values) for name, values in parts.items() if values}, torch.cat(readable)


class NaFlexHeldOutImages(HeldOutImages):
    """Measures methods on held-out images that keep their aspect ratio, see `HeldOutImages`.

    The masked L1 is the mean absolute difference over all masked pixels and channels of all images: a patch counts the
    same whatever the image it belongs to. The baselines fill each image in its own shape.
    """

    def batches(self, method: NaFlexMethod) -> Iterator[Tuple[NaFlexImages, torch.Tensor]]:
        """Yield NaFlex batches and the noise for their masks. An image appears once for each of its masks."""
        for start in range(0, len(self.mask_numbers), self.batch_size):
            numbers = self.mask_numbers[start:start + self.batch_size]
            places = torch.arange(start, start + len(numbers)) // self.num_masks
            yield self._select(places), self._noise(numbers)

    def _select(self, places: torch.Tensor) -> NaFlexImages:
        return {name: tensor[places].to(self.device) for name, tensor in self.images.items()}

    def _noise(self, numbers: torch.Tensor) -> torch.Tensor:
        return keyed_noise(self.mask_seed, 0, numbers.to(self.device), self.images['patches'].shape[1])

    def _idle_batch(self, method: NaFlexMethod) -> Tuple[NaFlexImages, torch.Tensor]:
        rows, columns = method.patch_stride
        images = dict(
            patches=torch.zeros(1, 2, rows * columns * method.in_chans, device=self.device),
            patch_coord=torch.tensor([[[0, 0], [0, 1]]], device=self.device),
            patch_valid=torch.ones(1, 2, dtype=torch.bool, device=self.device),
        )
        return images, torch.rand(1, 2, device=self.device)

    def _weight(self, method: NaFlexMethod, images: NaFlexImages, noise: torch.Tensor) -> float:
        return float(method.count_masked(images, noise))

    @torch.no_grad()
    def measure(self, method: NaFlexMethod, autocast: Callable) -> Dict[str, float]:
        """Return the held-out errors of a method by name, see `HeldOutImages.measure`."""
        def values(images: NaFlexImages, noise: torch.Tensor) -> Dict[str, torch.Tensor]:
            batch = method.read_naflex(images)
            mask = method.given_naflex_mask(method.make_naflex_mask(noise, batch), batch)
            with autocast():
                if method.reconstructs_pixels:
                    predicted = method.reconstruct_naflex(batch.blank(mask.patches), mask)
                    return dict(masked_l1=(predicted - batch.patches).abs().mean(dim=-1)[mask.patches].mean())
                loss = method(images, noise=noise).loss
            # targets are patches that are normalised by their own mean and variance, whose mean is 0
            target, chosen = method.naflex_target(batch, mask)
            uninformed = method.compare_patches(torch.zeros_like(target), target)[chosen].mean()
            return dict(loss=loss, loss_of_patch_mean=uninformed)
        return self._mean(method, values)

    @torch.no_grad()
    def baselines(self, method: NaFlexMethod, autocast: Callable) -> Dict[str, float]:
        """Return the masked L1 of the fills that are not learned; empty for a method that reconstructs no pixels."""
        if not method.reconstructs_pixels:
            return {}

        def values(images: NaFlexImages, noise: torch.Tensor) -> Dict[str, torch.Tensor]:
            batch = method.read_naflex(images)
            masks = method.naflex_pixel_mask(method.make_naflex_mask(noise, batch), batch)
            by_shape = defaultdict(list)
            for image, mask in zip(naflex_images(batch.patches, batch, method.patch_stride), masks):
                by_shape[image.shape].append((image, mask))
            groups = [[torch.stack(tensors) for tensors in zip(*pairs)] for pairs in by_shape.values()]
            weights = torch.stack([mask.sum() for _, mask in groups]).double()
            return {
                name: (torch.stack([masked_l1_loss(fill(image, mask), image, mask) for image, mask in groups]) * weights
                       ).sum() / weights.sum()
                for name, fill in FILLS.items()}
        return self._mean(method, values)

    @torch.no_grad()
    def views(self, method: NaFlexMethod, autocast: Callable, count: int) -> List[View]:
        """Return pictures of what a method sees and predicts, for the first images of this process.

        Args:
            method: Masked image modeling method.
            autocast: Creates the autocast context of a forward pass.
            count: Maximum number of images.
        """
        numbers = self.mask_numbers[::self.num_masks][:count]
        if len(numbers) == 0 and not self.in_step:
            return []
        with evaluating(method), autocast():
            if len(numbers) == 0:
                method.views(*self._idle_batch(method))
                return []
            return method.views(self._select(torch.arange(len(numbers))), self._noise(numbers))
