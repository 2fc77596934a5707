""" Names of Tensors, There and Here
"""
import re
from typing import Dict, Mapping, Optional, Sequence, Tuple

import torch

__all__ = ['Names', 'join_qkv', 'move_downsampling', 'split_qkv']

Pairs = Sequence[Tuple[str, str]]


class Names:
    """ Translates names from theirs to ours and back.

    Args:
        beginnings: Pairs of their and our beginning of a name. The first that a name begins with is replaced, a name
            that begins with none has no translation.
        parts: Pairs of their and our part of a name, of which the first that occurs after the beginning is replaced.
    """

    def __init__(self, beginnings: Pairs, parts: Pairs = ()) -> None:
        self.beginnings = beginnings
        self.parts = parts

    def ours(self, name: str) -> Optional[str]:
        """ Our name of their tensor, None if there is none.
        """
        return _translate(name, self.beginnings, self.parts)

    def theirs(self, name: str) -> Optional[str]:
        """ Their name of our tensor, None if there is none.
        """
        beginnings, parts = ([(ours, theirs) for theirs, ours in pairs] for pairs in (self.beginnings, self.parts))
        return _translate(name, beginnings, parts)


def _translate(name: str, beginnings: Pairs, parts: Pairs) -> Optional[str]:
    for source, target in beginnings:
        if name.startswith(source):
            rest = name[len(source):]
            part = next((part for part in parts if part[0] in rest), ('', ''))
            return target + rest.replace(*part, 1)
    return None


def join_qkv(tensors: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """ Join query, key and value (`attn.q`, `attn.k`, `attn.v`) where all three are there.
    """
    joined = dict(tensors)
    for name in tensors:
        if '.attn.q.' in name:
            names = [name.replace('.attn.q.', f'.attn.{part}.') for part in 'qkv']
            if all(part in tensors for part in names):
                joined[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat([joined.pop(part) for part in names])
    return joined


def split_qkv(tensors: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """ Split `attn.qkv` into query, key and value.
    """
    split = {}
    for name, tensor in tensors.items():
        if '.attn.qkv.' in name:
            split.update((name.replace('.attn.qkv.', f'.attn.{p}.'), t) for p, t in zip('qkv', tensor.chunk(3)))
        else:
            split[name] = tensor
    return split


def move_downsampling(tensors: Mapping[str, torch.Tensor], step: int) -> Dict[str, torch.Tensor]:
    """ Move the downsampling of Swin stages by some stages: timm's begins a stage, that of all others ends one.
    """
    def moved(match: re.Match) -> str:
        return f'layers.{int(match[1]) + step}.downsample.'

    return {re.sub(r'\blayers\.(\d+)\.downsample\.', moved, name): tensor for name, tensor in tensors.items()}
