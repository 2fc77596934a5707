""" Keyed Noise

Noise that is a function of (seed, step, position of the sample in the global batch) and of nothing else: one process
or many, a fresh run or a resumed one, CPU or CUDA draw the same numbers for the same sample.

The generator is SplitMix64, a counter through a 64 bit mixing function (Steele, Lea and Flood, `Fast Splittable
Pseudorandom Number Generators`, OOPSLA 2014), here in integer tensor operations. Each sample has a stream of its own,
and the seed of that stream is an output of the stream that seed and step select.
"""
from typing import Union

import torch

__all__ = ['keyed_noise']

_WORD = (1 << 64) - 1  # mask of an unsigned 64 bit word
_INCREMENT = 0x9E3779B97F4A7C15  # 2 ** 64 / golden ratio
_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_NOISE_BITS = 24  # all values k / 2 ** 24 are exact in float32


def keyed_noise(seed: int, step: int, positions: torch.Tensor, size: int) -> torch.Tensor:
    """ Draw uniform noise in [0, 1) that depends on nothing but its arguments.

    Args:
        seed: Seed of the run.
        step: Number of the step, counted over the whole run.
        positions: Positions (B,) int64 of the samples in the global batch of that step, on the device of the noise.
        size: Number of values per sample.

    Returns:
        Noise of shape (B, size), float32, one row per position.

    Raises:
        ValueError: The positions are not a vector of int64.
    """
    if positions.ndim != 1 or positions.dtype != torch.int64:
        raise ValueError(
            f'positions must be a vector of int64, got {tuple(positions.shape)} of {positions.dtype}.')
    key = _stream_value(_stream_value(0, seed), step)
    row_keys = _stream_value(key, positions)  # (B,)
    counters = torch.arange(size, device=positions.device)  # (size,)
    words = _stream_value(row_keys.unsqueeze(1), counters)  # (B, size)
    return _shift_right(words, 64 - _NOISE_BITS).float() * 2. ** -_NOISE_BITS


def _stream_value(
        key: Union[int, torch.Tensor],
        counter: Union[int, torch.Tensor],
) -> Union[int, torch.Tensor]:
    """ Value number `counter` of the SplitMix64 stream seeded with `key`.
    """
    word = _wrap(_wrap(counter + 1) * _signed(_INCREMENT) + key)
    word = _wrap((word ^ _shift_right(word, 30)) * _signed(_MULTIPLIERS[0]))
    word = _wrap((word ^ _shift_right(word, 27)) * _signed(_MULTIPLIERS[1]))
    return word ^ _shift_right(word, 31)


def _shift_right(word: Union[int, torch.Tensor], bits: int) -> Union[int, torch.Tensor]:
    # the shift of a signed integer repeats the sign bit, an unsigned word gets zeros
    return (word >> bits) & (_WORD >> bits)


def _wrap(word: Union[int, torch.Tensor]) -> Union[int, torch.Tensor]:
    # tensors wrap by themselves, Python's integers grow
    return _signed(word) if isinstance(word, int) else word


def _signed(word: int) -> int:
    """ The signed integer with the same 64 bits.
    """
    return (word + (1 << 63) & _WORD) - (1 << 63)
