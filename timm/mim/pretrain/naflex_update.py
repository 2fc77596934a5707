"""The batches of an update on NaFlex batches, whose numbers of images and patches differ."""
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist

from ..masking import keyed_noise
from ..native_aspect import NaFlexMethod


class Part(NamedTuple):
    """A batch of an update.

    Attributes:
        images: Images (B, C, H, W), or a NaFlex batch.
        index: Index of each image (B,), `~index` where another image replaces one that cannot be read.
        noise: Noise for the masks.
        first: Position of the first image in the global batch of the update.
        weight: Factor of the loss, None for equal weights of all batches.
        scale: Factor of the loss that is not reported, see --naflex-loss-scale.
    """
    images: torch.Tensor
    index: torch.Tensor
    noise: torch.Tensor
    first: int
    weight: Optional[torch.Tensor] = None
    scale: float = 1.


def naflex_parts(
        batches: Iterator[Tuple[Dict[str, torch.Tensor], torch.Tensor]],
        count: int,
        method: NaFlexMethod,
        seed: int,
        update: int,
        rank: int = 0,
        world_size: int = 1,
        reference_size: int = 1,
        loss_scale: str = 'none',
) -> List[Part]:
    """Read the batches of an update, and weight their losses.

    A batch's loss is the mean over its masked patches. The weights make the mean over all processes of the sum over
    batches the mean over the masked patches of the whole update, so that every masked patch counts the same. All
    processes must call this together.

    Args:
        batches: Batches and indices of their images.
        count: Number of batches per process.
        method: Method, which makes the masks.
        seed: Seed of the masks.
        update: Number of the update.
        rank: Rank of this process.
        world_size: Number of processes.
        reference_size: Number of images that `loss_scale` divides by.
        loss_scale: 'linear' multiplies the loss of a batch by its number of images divided by `reference_size`, 'sqrt'
            by the square root of it, 'none' by 1.
    """
    parts, masked, before = [], [], 0
    for _ in range(count):
        images, index = next(batches)
        valid = images['patch_valid']
        size = len(valid)  # the same on all processes
        first = before + rank * size
        positions = torch.arange(first, first + size, device=valid.device)
        noise = keyed_noise(seed, update, positions, valid.shape[1])
        before += size * world_size
        relative = size / reference_size
        scale = dict(none=1., sqrt=relative ** 0.5, linear=relative)[loss_scale]
        parts.append(Part(images, index, noise, first, scale=scale))
        masked.append(method.count_masked(images, noise))
    counts = torch.stack(masked).double() if valid.device.type != 'mps' else torch.stack(masked).float()
    total = counts.sum()
    if world_size > 1:
        dist.all_reduce(total)
    weights = (counts * world_size / total.clamp(min=1)).float()
    return [part._replace(weight=weight) for part, weight in zip(parts, weights)]
