"""What can be filled into masked pixels without learning anything: the baselines of a reconstruction."""
import torch
import torch.nn.functional as F


def mean_of_visible(images: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """Fill masked pixels with the mean colour of the image's visible pixels.

    Args:
        images: Images [B, C, H, W].
        pixel_mask: Bool mask [B, 1, H, W], True where masked.
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
    """Let the visible pixels diffuse into the masked ones until nothing changes (Laplace's equation).

    Every masked pixel becomes the mean of its neighbours, with no flow across the image border: the smoothest fill that
    meets the visible pixels. Solved by conjugate gradients, all images and channels at a time.

    Args:
        images: Images [B, C, H, W].
        pixel_mask: Bool mask [B, 1, H, W], True where masked.
        tolerance: Residual, relative to the first one, at which to stop.
        max_iterations: Iterations after which to stop in any case.
    """
    images = images.double()

    def laplacian(x: torch.Tensor) -> torch.Tensor:
        # Replicated borders add a zero difference, so that nothing flows across the border.
        padded = F.pad(x, (1, 1, 1, 1), mode='replicate')
        neighbours = padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1] + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]
        return (4 * x - neighbours) * pixel_mask

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum((2, 3), keepdim=True)

    filled = mean_of_visible(images, pixel_mask)
    residual = -laplacian(filled)
    direction = residual
    energy = dot(residual, residual)
    target = energy * tolerance ** 2
    for iteration in range(max_iterations):
        if iteration % 16 == 0 and bool((energy <= target).all()):
            break
        applied = laplacian(direction)
        step = energy / dot(direction, applied).clamp_min(1e-30)
        filled = filled + step * direction
        residual = residual - step * applied
        previous, energy = energy, dot(residual, residual)
        direction = residual + energy / previous.clamp_min(1e-30) * direction
    return filled
