"""The comparison of Proof 3, for the tests and for `python -m benchmarks.gpu`."""
import os
from typing import NamedTuple, Optional

import torch

import probe
from compare import differing

# read when cuBLAS starts, here and in the process of stock timm
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


class Compared(NamedTuple):
    """
    Attributes:
        differing: Names of the values in which the fork differs from stock timm.
        number: How many values were compared.
        unrepeatable: How many gradients were not, since stock timm gives other ones each time.
    """
    differing: list
    number: int
    unrepeatable: int


def compare_on_device(stock, device: str, **arguments) -> Optional[Compared]:
    """Compare `probe.values` of both processes, one after the other. None where they do not fit into the memory.

    Gradients are compared where stock timm gives the same ones twice.

    Raises:
        AssertionError: Something else than a gradient of stock timm is not repeatable.
    """
    try:
        expected, again = [(stock.ask('values', device=device, **arguments), stock.answer())[1] for _ in range(2)]
        ours = probe.values(composed=['eval'], device=device, **arguments)
    except RuntimeError as error:
        if 'out of memory' not in str(error):
            raise
        torch.cuda.empty_cache()
        return None
    finally:
        torch.use_deterministic_algorithms(False)
    unrepeatable = set(differing(expected, again))
    other = [name for name in unrepeatable if not name.startswith('train gradient')]
    assert not other, f'stock timm is not repeatable: {other[0]}'
    return Compared(
        [name for name in differing(ours, expected) if name not in unrepeatable],
        len(expected) - len(unrepeatable), len(unrepeatable))
