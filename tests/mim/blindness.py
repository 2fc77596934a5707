"""Is a method blind to masked pixels? Replaces them by others and compares to the last bit."""
from typing import Dict, Tuple

import torch
import torch.nn as nn


def prediction_and_gradients(
        method: nn.Module,
        images: torch.Tensor,
        noise: torch.Tensor,
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """Prediction, and the gradients of a sum of it with fixed weights, in which no target takes part."""
    method.zero_grad()
    training = method.training
    method.train().train(training)  # LeViT and others cache attention biases in eval mode, with their graph
    torch.manual_seed(1)  # dropout, stochastic depth
    prediction = method(images, noise=noise).prediction
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2))
    (prediction * weights).sum().backward()
    return prediction.detach(), {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def replaced(images: torch.Tensor, where: torch.Tensor, by: str) -> torch.Tensor:
    """Images with other pixels in some places."""
    generator = torch.Generator().manual_seed(3)
    others = dict(
        far=torch.randn(images.shape, generator=generator) * 1e3,
        near=torch.randn(images.shape, generator=generator),
        nan=torch.full(images.shape, torch.nan),
    )[by]
    return torch.where(where, others, images)


def differences(method: nn.Module, by: str) -> Tuple[bool, list]:
    """Whether the prediction changes with masked pixels, and names of the parameters whose gradient does."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, method.in_chans, *method.img_size, generator=generator)
    noise = torch.rand(method.noise_shape(2), generator=generator)
    mask = method.drawn_mask(noise, method.img_size)
    hidden = method.pixel_mask(method.hidden_patches(mask))
    prediction, gradients = prediction_and_gradients(method, images, noise)
    other_prediction, others = prediction_and_gradients(method, replaced(images, hidden, by), noise)
    assert prediction.isfinite().all() and gradients.keys() == others.keys()
    return not torch.equal(prediction, other_prediction), [
        name for name, gradient in gradients.items() if not torch.equal(gradient, others[name])]


def sees_visible_pixels(method: nn.Module) -> bool:
    """Whether the prediction changes with visible pixels: a prediction that never changes is blind in vain.

    In train mode: in eval mode the signal of LCNetV2 with random weights fades to less than a float can add to a bias.
    """
    method.train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, method.in_chans, *method.img_size, generator=generator)
    noise = torch.rand(method.noise_shape(2), generator=generator)
    hidden = method.pixel_mask(method.hidden_patches(method.drawn_mask(noise, method.img_size)))

    def predict(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # dropout, stochastic depth
        return method(x, noise=noise).prediction

    with torch.no_grad():
        return not torch.equal(predict(images), predict(replaced(images, ~hidden, 'near')))


def assert_blind(method: nn.Module) -> None:
    """In eval mode and in train mode, for pixels that are no numbers and pixels that are far away."""
    for training, fast_path, by in ((False, False, 'nan'), (True, True, 'far')):
        method.train(training)
        method.fast_path = fast_path
        assert differences(method, by) == (False, [])
    assert sees_visible_pixels(method)
