"""How well a method reconstructs images that it was not trained on."""
from typing import Any, Callable, Dict, Optional

import torch
import torch.distributed as dist
import torch.nn as nn

from .baselines import diffusion_fill, mean_of_visible
from .noise import keyed_noise
from .targets import masked_l1_loss

MASK_SEED = 0  # whatever the seed of the run, so that runs can be compared
MIN_MASKS = 32  # few images get several masks each, until there are this many


class HeldOutImages:
    """Held-out images with fixed masks, on which reconstructions are compared.

    The error is the mean absolute difference over all masked pixels and channels, of normalised images: the formula of
    SimMIM's loss. Every process holds a share of the images; results are over all of them.

    Args:
        images: Normalised images [N, C, H, W] of this process.
        numbers: Their numbers [N] over all processes, which decide their masks.
        num_images: Number of images over all processes.
        device: Device to reconstruct on.
        batch_size: Number of images to reconstruct at a time.
    """

    def __init__(
            self,
            images: torch.Tensor,
            numbers: torch.Tensor,
            num_images: int,
            device: torch.device,
            batch_size: int = 64,
    ):
        self.device = device
        self.batch_size = batch_size
        self.num_images = num_images
        self.num_masks = -(-MIN_MASKS // num_images)
        self.images = images
        self.mask_numbers = (numbers.view(-1, 1) * self.num_masks + torch.arange(self.num_masks)).flatten()

    def batches(self, method: nn.Module):
        """Yield images and the noise that makes their masks, image by image with each of its masks."""
        size = method.noise_shape(1)[1]
        for start in range(0, len(self.mask_numbers), self.batch_size):
            numbers = self.mask_numbers[start:start + self.batch_size]
            images = self.images[torch.arange(start, start + len(numbers)) // self.num_masks]
            yield images.to(self.device), keyed_noise(MASK_SEED, 0, numbers.to(self.device), size)

    @torch.no_grad()
    def masked_l1(
            self,
            method: nn.Module,
            autocast: Callable,
            fill: Optional[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = None,
    ) -> float:
        """Return the masked L1 of the method, or of a fill that takes its place on the same masks.

        Args:
            method: Masked image modeling method.
            autocast: Context of mixed precision.
            fill: Function of images and pixel mask that returns filled images.
        """
        training = method.training
        method.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for images, noise in self.batches(method):
            with autocast():
                output = method(images, noise=noise)
            loss = output.loss
            if fill is not None:
                pixel_mask = method.pixel_mask(output.mask)
                loss = masked_l1_loss(fill(images, pixel_mask), images, pixel_mask)
            total += torch.stack([loss.double() * len(images), loss.new_full((), len(images), dtype=torch.float64)])
        method.train(training)
        if dist.is_initialized():
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    def baselines(self, method: nn.Module, autocast: Callable) -> Dict[str, float]:
        """Return the masked L1 of the fills that learn nothing."""
        return {
            'mean_of_visible': self.masked_l1(method, autocast, fill=mean_of_visible),
            'diffusion_fill': self.masked_l1(method, autocast, fill=diffusion_fill),
        }

    @torch.no_grad()
    def reconstructions(self, method: nn.Module, autocast: Callable, count: int) -> Dict[str, Any]:
        """Return the first images of this process, their first masks and their reconstructions.

        Args:
            method: Masked image modeling method.
            autocast: Context of mixed precision.
            count: Number of images at most.
        """
        training = method.training
        method.eval()
        images = self.images[:count].to(self.device)
        numbers = self.mask_numbers[::self.num_masks][:count].to(self.device)
        noise = keyed_noise(MASK_SEED, 0, numbers, method.noise_shape(1)[1])
        with autocast():
            output = method(images, noise=noise)
            pixels = method.reconstruct(images, output.mask)
        method.train(training)
        return dict(images=images, reconstructions=pixels, pixel_mask=method.pixel_mask(output.mask))
