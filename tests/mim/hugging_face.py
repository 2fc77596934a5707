"""Weights of Hugging Face's vision transformers by timm's names."""
import torch

BLOCK_NAMES = {
    'attention.o_proj': 'attn.proj',
    'layernorm_before': 'norm1',
    'layernorm_after': 'norm2',
    'attention.q_proj': 'attn.q',
    'attention.k_proj': 'attn.k',
    'attention.v_proj': 'attn.v',
}


def rename(name, names):
    """A name in which every part of a mapping was replaced."""
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def join_qkv(tensors):
    """Tensors with query, key and value as one."""
    tensors = dict(tensors)
    for name in [name for name in tensors if '.attn.q.' in name]:
        parts = [tensors.pop(name.replace('.attn.q.', f'.attn.{part}.')) for part in 'qkv']
        tensors[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat(parts)
    return tensors


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()
