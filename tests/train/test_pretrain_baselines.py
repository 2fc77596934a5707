"""The baselines, and the error that they share with the method."""
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from timm.mim import create_mim
from timm.mim.pretrain.held_out import MIN_MASKS, HeldOutImages, diffusion_fill, evaluating


@pytest.fixture(scope='module')
def method():
    torch.manual_seed(0)
    return create_mim('simmim', 'test_vit', img_size=64, mask_unit=16)


def held_out_of(images, numbers=None, num_images=None, batch_size=5):
    numbers = torch.arange(len(images)) if numbers is None else numbers
    return HeldOutImages(images, numbers, num_images or len(images), torch.device('cpu'), batch_size)


def test_mean_of_visible_in_closed_form(method):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    held_out = held_out_of(images)
    error = held_out.baselines(method, nullcontext)['mean_of_visible']

    errors = []
    for batch, noise in held_out.batches(method):
        with torch.no_grad():
            mask = method(batch, noise=noise).mask.numpy()
        for image, cells in zip(batch.numpy().astype(np.float64), mask):
            hidden = np.kron(cells, np.ones((16, 16), bool))
            errors += [np.abs(channel[hidden] - channel[~hidden].mean()).mean() for channel in image]
    assert len(errors) >= 3 * MIN_MASKS
    assert error == pytest.approx(np.mean(errors), rel=1e-5)  # float32 sums of 3 * 64 * 64 pixels


def test_error_of_the_method_in_closed_form(method):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    held_out = held_out_of(images)
    errors = []
    for batch, noise in held_out.batches(method):
        with torch.no_grad():
            mask = method(batch, noise=noise).mask
            pixels = method.reconstruct(batch, mask)
        hidden = np.kron(mask.numpy(), np.ones((1, 16, 16), bool))[:, None].repeat(3, 1)
        errors += [np.abs(p - b)[h].mean() for p, b, h in zip(pixels.numpy(), batch.numpy(), hidden)]
    assert held_out.measure(method, nullcontext)['masked_l1'] == pytest.approx(np.mean(errors), rel=1e-5)


def test_masks_do_not_depend_on_batches_or_processes(method):
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))

    def noise_by_image(held_out, numbers):
        noise = torch.cat([noise for _, noise in held_out.batches(method)]).unflatten(0, (len(numbers), -1))
        return dict(zip(numbers.tolist(), noise))

    whole = noise_by_image(held_out_of(images, batch_size=7), torch.arange(4))
    for rank in range(2):
        numbers = torch.arange(rank, 4, 2)
        part = noise_by_image(held_out_of(images[rank::2], numbers, 4, batch_size=3), numbers)
        assert all(torch.equal(part[n], whole[n]) for n in part)
    assert not torch.equal(whole[0][0], whole[0][1]) and not torch.equal(whole[0], whole[1])


def test_method_is_measured_without_dropout():
    torch.manual_seed(0)
    method = create_mim('simmim', 'test_vit', img_size=64, mask_unit=16, model_kwargs=dict(proj_drop_rate=0.5)).train()
    held_out = held_out_of(torch.randn(2, 3, 64, 64))
    assert held_out.measure(method, nullcontext) == held_out.measure(method, nullcontext)
    assert method.training


def test_diffusion_of_a_ramp_is_the_ramp():
    ramp = torch.linspace(-1, 3, 40).expand(1, 2, 24, 40).clone()
    mask = torch.zeros(1, 1, 24, 40, dtype=torch.bool)
    mask[..., 8:30] = True  # from top to bottom: nothing flows across the border
    torch.testing.assert_close(diffusion_fill(ramp, mask, tolerance=1e-8).float(), ramp, atol=1e-5, rtol=0)


def test_diffusion_solves_laplace_equation():
    sparse = pytest.importorskip('scipy.sparse')
    from scipy.sparse.linalg import spsolve
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 17))
    mask = np.kron(rng.random((3, 5)) < 0.6, np.ones((4, 4), bool))[:, :17][:12, :17]
    mask = np.pad(mask, ((0, 0), (0, max(0, 17 - mask.shape[1]))))[:12, :17].astype(bool)
    index = {place: i for i, place in enumerate(zip(*np.nonzero(mask)))}
    matrix, right = sparse.lil_matrix((len(index), len(index))), np.zeros(len(index))
    for (y, x), i in index.items():
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= place[0] < 12 and 0 <= place[1] < 17:
                matrix[i, i] += 1
                if place in index:
                    matrix[i, index[place]] -= 1
                else:
                    right[i] += image[place]
    expected = image.copy()
    expected[mask] = spsolve(matrix.tocsr(), right)
    filled = diffusion_fill(torch.tensor(image)[None, None], torch.tensor(mask)[None, None], tolerance=1e-10)
    np.testing.assert_allclose(filled[0, 0].numpy(), expected, atol=1e-8)  # residual of the solver, relative 1e-10


def test_diffusion_of_a_constant_costs_nothing():
    images = torch.full((1, 3, 8, 8), 0.25)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 0, 0] = False
    assert torch.equal(diffusion_fill(images, mask).float(), images)


def test_a_method_trains_on_after_an_error(method):
    method.train()
    with pytest.raises(RuntimeError, match='broken'), evaluating(method):
        assert not method.training
        raise RuntimeError('broken')
    assert method.training
