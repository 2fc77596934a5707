import math

import numpy as np
import pytest
import torch
from skimage.feature import hog

from timm.mim import hog_target


def separable_images(batch_size=2, channels=3, height=48, width=64):
    """Sums of a function of the row and one of the column: their Sobel gradients are four central differences."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch_size, channels, height, 1, generator=generator)
    columns = torch.randn(batch_size, channels, 1, width, generator=generator)
    return rows + columns


def sobel(image):
    """Sobel gradients written with numpy's correlation of two vectors, over an image continued by reflection."""
    padded = np.pad(image.numpy().astype(np.float64), 1, mode='reflect')
    smooth, edge = np.array([1, 2, 1]), np.array([-1, 0, 1])

    def along(array, kernel, axis):
        return np.apply_along_axis(lambda line: np.correlate(line, kernel, 'valid'), axis, array)

    return along(along(padded, smooth, 0), edge, 1), along(along(padded, smooth, 1), edge, 0)


@pytest.mark.parametrize('orientations, cell_size', [(9, 8), (6, 16)])
def test_equals_scikit_image(orientations, cell_size):
    """It differs in measuring from the horizontal (so its image is transposed) and in central differences."""
    images = separable_images()
    ours = hog_target(images, orientations, cell_size, gaussian_window=None)
    grid = 48 // cell_size, 64 // cell_size
    assert ours.shape == (2, 3 * orientations, *grid) and ours.dtype == torch.float32
    ours = ours.unflatten(1, (3, orientations))
    for sample in range(2):
        for channel in range(3):
            theirs = hog(
                images[sample, channel].T.double().numpy(), orientations, (cell_size, cell_size), (1, 1), 'L2',
                feature_vector=False)  # (w, h, 1, 1, N)
            expected = torch.from_numpy(theirs[:, :, 0, 0].transpose(2, 1, 0).astype(np.float32))
            # theirs adds 1e-5 to the length
            torch.testing.assert_close(ours[sample, channel], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('degrees', [5, 33, 88, 95, 147, 179])
def test_a_ramp_has_one_orientation(degrees):
    angle = math.radians(degrees)
    row, column = torch.meshgrid(torch.arange(32.), torch.arange(48.), indexing='ij')
    image = row * math.cos(angle) + column * math.sin(angle)  # rises in a direction measured from the vertical
    histograms = hog_target(image.expand(1, 1, -1, -1))[0, :, 1:-1, 1:-1]  # reflection at the border bends it
    expected = torch.zeros(9)
    expected[degrees // 20] = 1
    torch.testing.assert_close(histograms, expected.view(9, 1, 1).expand_as(histograms))


def test_gaussian_window():
    """Pixel by pixel, in a cell as large as a window, of which the image has two."""
    image = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    horizontal, vertical = sobel(image)
    histograms = torch.zeros(2, 9)
    for row in range(16):
        for column in range(32):
            gradient = horizontal[row, column], vertical[row, column]
            weight = math.exp(-((row - 7.5) ** 2 + (column % 16 - 7.5) ** 2) / (2 * 8 ** 2))
            orientation = int(math.degrees(math.atan2(*gradient)) % 180 // 20) % 9
            histograms[column // 16, orientation] += weight * math.hypot(*gradient)
    expected = histograms / histograms.norm(dim=1, keepdim=True)
    ours = hog_target(image.expand(1, 1, -1, -1), cell_size=16)[0]
    torch.testing.assert_close(ours[:, 0].T, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hog_target(image.expand(1, 1, -1, -1), 9, 16, None)[0], ours, atol=1e-2)


def test_normalisation_of_the_images_makes_no_difference():
    images = separable_images() + torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(hog_target((images - mean) / std), hog_target(images), rtol=1e-3, atol=1e-3)


def test_low_precision_and_gradients():
    images = separable_images().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        histograms = hog_target(images)
    assert not histograms.requires_grad
    torch.testing.assert_close(histograms, hog_target(images))


def test_flat_image_and_wrong_size():
    assert not hog_target(torch.ones(1, 4, 16, 16)).any()
    with pytest.raises(ValueError, match='^HOG needs images whose sides are multiples of 8 pixels, got 16 x 20.$'):
        hog_target(torch.ones(1, 3, 16, 20))
