"""Measure how well a method predicts held-out images, and compare it with baselines that are not learned."""

from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from ..masking import keyed_noise
from ..output import View
from ..targets import full_precision, masked_l1_loss
from .errors import UserError

MASK_SEED = 0  # the same for every seed of a run, so that runs are comparable
MIN_MASKS = 32  # if there are fewer images, each gets several masks to reach this number


def mean_of_visible(images: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """Fill masked pixels with the mean colour of the visible pixels of the image.

    Args:
        images: Images (B, C, H, W).
        pixel_mask: Bool mask (B, 1, H, W), True where masked.

    Returns:
        Filled images (B, C, H, W).
    """
    visible = ~pixel_mask
    mean = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
    return torch.where(pixel_mask, mean, images)


def diffusion_fill(
        images: torch.Tensor,
        pixel_mask: torch.Tensor,
        tolerance: float = 1e-4,
        max_iterations: int = 2000,
) -> torch.Tensor:
    """Fill masked pixels by solving Laplace's equation with the visible pixels as boundary values.

    Every masked pixel becomes the mean of its neighbours, without flow across the image border. This is the smoothest
    fill that keeps the visible pixels. Conjugate gradients solve it for all images and channels at once.

    Args:
        images: Images (B, C, H, W).
        pixel_mask: Bool mask (B, 1, H, W), True where masked.
        tolerance: Norm of the residual at which to stop, divided by the norm of the first residual.
        max_iterations: Maximum number of iterations.

    Returns:
        Filled images (B, C, H, W), float32 unless the images are float64.
    """
    images = full_precision(images)
    is_masked = pixel_mask.to(images.dtype)

    # Operations in place: the time goes into reading and writing memory.
    def laplacian(x: torch.Tensor) -> torch.Tensor:
        # Replicated borders have zero difference to their neighbours, so nothing flows across the border.
        padded = F.pad(x, (1, 1, 1, 1), mode='replicate')
        neighbours = padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1]
        neighbours.add_(padded[:, :, 1:-1, :-2]).add_(padded[:, :, 1:-1, 2:])
        return neighbours.sub_(x, alpha=4).neg_().mul_(is_masked)

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vecdot(a.flatten(2), b.flatten(2))[..., None, None]

    filled = mean_of_visible(images, pixel_mask)
    residual = laplacian(filled).neg_()
    direction = residual.clone()
    energy = dot(residual, residual)
    target = energy * tolerance ** 2
    for iteration in range(max_iterations):
        if iteration % 16 == 0 and bool((energy <= target).all()):
            break
        applied = laplacian(direction)
        step = energy / dot(direction, applied).clamp_min(1e-30)
        filled.addcmul_(step, direction)
        residual.addcmul_(step, applied, value=-1)
        previous, energy = energy, dot(residual, residual)
        direction.mul_(energy / previous.clamp_min(1e-30)).add_(residual)
    return filled


FILLS = dict(mean_of_visible=mean_of_visible, diffusion_fill=diffusion_fill)


class HeldOutImages:
    """Measures methods on held-out images with fixed masks.

    The masked L1 is the mean absolute difference over all masked pixels and channels of normalised images, the formula
    of SimMIM's loss. Every process holds a share of the images; results are over the images of all processes.

    Args:
        images: Normalised images (N, C, H, W) of this process.
        numbers: Their positions (N,) among the images of all processes, which determine their masks.
        num_images: Number of images over all processes.
        device: Device to compute on.
        batch_size: Number of images per forward pass.
        in_step: All processes must run the same number of forward passes, as a sharded model requires.
        mask_seed: Seed of the masks.
    """

    def __init__(
            self,
            images: torch.Tensor,
            numbers: torch.Tensor,
            num_images: int,
            device: torch.device,
            batch_size: int = 64,
            in_step: bool = False,
            mask_seed: int = MASK_SEED,
    ):
        self.device = device
        self.batch_size = batch_size
        self.mask_seed = mask_seed
        self.num_images = num_images
        self.num_masks = -(-MIN_MASKS // num_images)
        self.images = images
        self.mask_numbers = (numbers.view(-1, 1) * self.num_masks + torch.arange(self.num_masks)).flatten()

        self.num_batches = -(-len(self.mask_numbers) // batch_size)
        self.idle_batches = 0  # extra forward passes of this process, whose results are not used
        self.in_step = in_step
        if in_step:
            most = torch.tensor(self.num_batches, device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            self.idle_batches = int(most) - self.num_batches

    def _idle_batch(self, method: nn.Module) -> Tuple[torch.Tensor, torch.Tensor]:
        images = torch.zeros(1, *self.images.shape[1:], device=self.device)
        return images, torch.rand(method.noise_shape(1), device=self.device)

    def batches(self, method: nn.Module) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches of images and the noise for their masks. An image appears once for each of its masks."""
        size = method.noise_shape(1)[1]
        for start in range(0, len(self.mask_numbers), self.batch_size):
            numbers = self.mask_numbers[start:start + self.batch_size]
            images = self.images[torch.arange(start, start + len(numbers)) // self.num_masks]
            yield images.to(self.device), keyed_noise(self.mask_seed, 0, numbers.to(self.device), size)

    @torch.no_grad()
    def measure(self, method: nn.Module, autocast: Callable) -> Dict[str, float]:
        """Return the held-out errors of a method by name. The first one decides which epoch is best.

        A method that reconstructs pixels has its masked L1. Any other method has its own loss, the values that it logs,
        and the losses of uninformed predictions.

        Args:
            method: Masked image modeling method.
            autocast: Creates the autocast context of a forward pass.
        """
        def values(images: torch.Tensor, noise: torch.Tensor) -> Dict[str, torch.Tensor]:
            with autocast():
                if not method.reconstructs_pixels:
                    output = method(images, noise=noise)
                    return dict(loss=output.loss, **(output.logs or {}), **method.uninformed_losses(output))
                mask = method.make_mask(noise)
                pixels = method.reconstruct(images, mask)
            return dict(masked_l1=masked_l1_loss(pixels, images, method.pixel_mask(mask)))
        return self._mean(method, values)

    @torch.no_grad()
    def baselines(self, method: nn.Module, autocast: Callable) -> Dict[str, float]:
        """Return the masked L1 of the fills that are not learned; empty for a method that reconstructs no pixels."""
        if not method.reconstructs_pixels:
            return {}

        def values(images: torch.Tensor, noise: torch.Tensor) -> Dict[str, torch.Tensor]:
            mask = method.pixel_mask(method.make_mask(noise))
            return {name: masked_l1_loss(fill(images, mask), images, mask) for name, fill in FILLS.items()}
        return self._mean(method, values)

    @torch.no_grad()
    def views(self, method: nn.Module, autocast: Callable, count: int) -> List[View]:
        """Return pictures of what a method sees and predicts, for the first images of this process.

        Args:
            method: Masked image modeling method.
            autocast: Creates the autocast context of a forward pass.
            count: Maximum number of images.
        """
        numbers = self.mask_numbers[::self.num_masks][:count].to(self.device)
        if len(numbers) == 0:
            if self.in_step:
                with evaluating(method), autocast():
                    method.views(*self._idle_batch(method))
            return []
        noise = keyed_noise(self.mask_seed, 0, numbers, method.noise_shape(1)[1])
        with evaluating(method), autocast():
            return method.views(self.images[:count].to(self.device), noise)

    def _weight(self, method: nn.Module, images: torch.Tensor, noise: torch.Tensor) -> float:
        """Return the weight of a batch in the means over all batches."""
        return len(images)

    def _mean(self, method: nn.Module, values: Callable) -> Dict[str, float]:
        """Return the means of `values` over all images and masks of all processes.

        Raises:
            UserError: No held-out image has a masked patch.
        """
        sums, count = {}, 0
        with evaluating(method):
            for images, noise in self.batches(method):
                weight = self._weight(method, images, noise)
                found = values(images, noise)
                if weight:  # otherwise no patch is masked, and the means of the batch are not numbers
                    for name, value in found.items():
                        sums[name] = sums.get(name, 0) + value.double() * weight
                count += weight
            for _ in range(self.idle_batches):
                values(*self._idle_batch(method))
        shares = [({name: value.item() for name, value in sums.items()}, count)]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, shares[0])
            shares = [share for share in gathered if share[1]]  # a process may have no images
        total = sum(count for _, count in shares)
        if not total:
            raise UserError('--val-split: no patch of the held-out images is masked; hold out larger images.')
        return {name: sum(values[name] for values, _ in shares) / total for name in shares[0][0]}


@contextmanager
def evaluating(method: nn.Module) -> Iterator[None]:
    """Put a method into evaluation mode for the block, and restore its mode afterwards."""
    training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(training)
