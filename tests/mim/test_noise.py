import math

import numpy as np
import pytest
import torch

from timm.mim import keyed_noise

WORD = (1 << 64) - 1


def splitmix64(seed):
    """The published generator, `splitmix64.c` of the SplitMix64 reference, in Python's unbounded integers."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & WORD
        word = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
        yield word ^ (word >> 31)


def nth(seed, index):
    """The state is a counter, so the stream can be entered anywhere."""
    return next(splitmix64(seed + index * 0x9E3779B97F4A7C15))


def test_reference_generator_is_the_published_one():
    # first outputs for seed 1234567, as published with the reference implementation
    stream = splitmix64(1234567)
    assert [next(stream) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize('seed, step', [(0, 0), (42, 7), (2 ** 63 + 5, 100), (-1, 3)])
def test_values_are_those_of_nested_streams(seed, step):
    key = nth(nth(0, seed), step)
    noise = keyed_noise(seed, step, torch.tensor([0, 5]), 4)
    for row, position in zip(noise, (0, 5)):
        stream = splitmix64(nth(key, position))
        expected = [(next(stream) >> 40) / 2 ** 24 for _ in range(4)]
        assert row.tolist() == expected


def test_noise_belongs_to_the_position():
    whole = keyed_noise(3, 11, torch.arange(64), 49)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_noise(3, 11, order, 49), whole[order])
    # two ranks with half of the batch each
    assert torch.equal(torch.cat([keyed_noise(3, 11, torch.arange(a, a + 32), 49) for a in (0, 32)]), whole)
    # more values per sample are a continuation
    assert torch.equal(keyed_noise(3, 11, torch.arange(64), 60)[:, :49], whole)


def test_seed_step_position_and_index_all_matter():
    noise = keyed_noise(0, 0, torch.arange(2), 8)
    for other in (
            keyed_noise(1, 0, torch.arange(2), 8),
            keyed_noise(0, 1, torch.arange(2), 8),
            keyed_noise(0, 0, torch.arange(2, 4), 8),
            noise.flip(0),
            noise.flip(1),
    ):
        assert (noise != other).all()


def test_uniform():
    noise = keyed_noise(0, 0, torch.arange(2000), 196).flatten().double()
    assert 0 <= noise.min() and noise.max() < 1
    # Kolmogorov-Smirnov: P(sqrt(n) * D > 1.95) = 0.001
    n = len(noise)
    ordered = noise.sort().values
    distance = torch.maximum(torch.arange(1, n + 1) / n - ordered, ordered - torch.arange(n) / n).max()
    assert distance * math.sqrt(n) < 1.95


@pytest.mark.parametrize('draw', [
    lambda k: keyed_noise(k, 0, torch.arange(1), 1),
    lambda k: keyed_noise(0, k, torch.arange(1), 1),
])
def test_uniform_over_consecutive_seeds_and_steps(draw):
    # chi-square over 16 cells of 2048 draws, its 0.999 quantile at 15 degrees of freedom is 37.7
    values = torch.cat([draw(k).flatten() for k in range(2048)])
    counts = (values * 16).long().bincount(minlength=16).double()
    assert ((counts - 128) ** 2 / 128).sum() < 37.7


@pytest.mark.parametrize('pair', ['seed', 'step', 'position', 'index', 'swapped'])
def test_neighbours_are_independent(pair):
    positions = torch.arange(1000)
    noise = keyed_noise(5, 9, positions, 64)
    other = {
        'seed': lambda: keyed_noise(6, 9, positions, 64),
        'step': lambda: keyed_noise(5, 10, positions, 64),
        'position': lambda: noise.roll(1, 0),
        'index': lambda: noise.roll(1, 1),
        'swapped': lambda: keyed_noise(9, 5, positions, 64),
    }[pair]()
    # chi-square of the joint histogram over 8 x 8 cells, its 0.999 quantile at 63 degrees of freedom is 103.4
    cells = (noise * 8).long() * 8 + (other * 8).long()
    counts = cells.flatten().bincount(minlength=64).double()
    expected = noise.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4
    correlation = np.corrcoef(noise.flatten().numpy(), other.flatten().numpy())[0, 1]
    assert abs(correlation) < 3.3 / math.sqrt(noise.numel())  # 0.001, two-sided


@pytest.mark.parametrize('positions, shape', [
    (torch.zeros(2, 2, dtype=torch.int64), r'\(2, 2\) of torch.int64'),
    (torch.zeros(2), r'\(2,\) of torch.float32'),
])
def test_wrong_positions(positions, shape):
    with pytest.raises(ValueError, match=f'^positions must be a vector of int64, got {shape}.$'):
        keyed_noise(0, 0, positions, 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda_draws_what_the_cpu_draws():
    positions = torch.arange(256)
    assert torch.equal(keyed_noise(3, 4, positions.cuda(), 196).cpu(), keyed_noise(3, 4, positions, 196))
