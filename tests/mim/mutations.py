"""Random damage to checkpoint files, by seed: what a broken disk, another program or an attacker could leave there."""
import copy
import os
import struct
import zipfile

import torch


class RunsCode:
    """An object whose pickle makes a folder when it is loaded by a reader that runs code."""

    def __init__(self, folder):
        self.folder = folder

    def __deepcopy__(self, memo):
        return self  # copying must not run it

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def odd_values(rng):
    """Values that are no tensors, as a program could save in place of one."""
    return rng.choice([
        None, 5, -1, 0, 1.5, float('nan'), 2 ** 70, True, 'text', 'a\nb', '', [], [1, 2], [None], {}, {'a': 1}, {5: {}},
        (), 'hf-hub:someone/something', 'vit_base_patch16_224', 'resnet18', b'bytes', torch.float32,
        {'checkpoint_path': '/etc/hostname'}, {'pretrained': True}, {'target': 'vit_tiny_patch16_224'},
    ])


def odd_tensor(tensor, rng):
    """A tensor with the numbers of another one, but another shape, type, layout or memory, or numbers changed."""
    flat = tensor.detach().float().flatten()
    square = flat[:4].repeat(4)[:4].view(2, 2)
    return rng.choice([
        lambda: flat,
        lambda: tensor.unsqueeze(0),
        lambda: tensor.float().mean(),
        lambda: flat[:0],
        lambda: tensor[..., :0],
        lambda: tensor[:1],
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else flat,
        lambda: tensor.long() if tensor.is_floating_point() else tensor.float(),
        lambda: tensor > 0,
        lambda: tensor.to(torch.complex64),
        lambda: torch.full_like(flat, float('nan')).view(tensor.shape),
        lambda: torch.full_like(flat, float('inf')).view(tensor.shape),
        lambda: square.to_sparse(),
        lambda: torch.quantize_per_tensor(square, 0.1, 0, torch.qint8),
        lambda: torch.empty(tensor.shape, device='meta'),
        lambda: torch.zeros(1).expand(1 << 40),
        lambda: tensor.half(),
        lambda: tensor.float().to(torch.float8_e4m3fn),
    ])()


def damaged(content, rng):
    """A copy of nested dictionaries with one entry dropped, renamed, copied to another name, or replaced."""
    content = copy.deepcopy(content)
    folder = rng.choice(list(dictionaries(content)))
    name = rng.choice(list(folder))
    value = folder[name]
    action = rng.randrange(6)
    if action == 0:
        del folder[name]
    elif action == 1:
        text = str(name)
        odd = [5, None, 'a\nb', f'module.{text}', f'{text}.weight', text.replace('0', '1'), text.replace('0', '999999'),
               text.replace('0', '\u00b2')]
        folder[rng.choice(odd)] = folder.pop(name)
    elif action == 2:
        odd = [f'module.{name}', f'{name}2', 'config', 'args', 'mim', 'model', 'checkpoint_path']
        folder[rng.choice(odd)] = value
    elif action == 3 and isinstance(value, torch.Tensor):
        folder[name] = odd_values(rng)
    elif isinstance(value, torch.Tensor):
        folder[name] = odd_tensor(value, rng)
    else:
        folder[name] = odd_values(rng)
    return content


def dictionaries(content):
    """All dictionaries that are not empty in nested dictionaries."""
    if isinstance(content, dict) and content:
        yield content
        for value in content.values():
            yield from dictionaries(value)


def damaged_bytes(whole, rng):
    """Bytes of a file cut short, with a few changed, or with zeros in the middle."""
    place = rng.randrange(len(whole))
    action = rng.randrange(3)
    if action == 0:
        return whole[:place]
    damaged = bytearray(whole)
    if action == 1:
        for _ in range(rng.choice([1, 20])):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
    else:
        damaged[place:place + 512] = bytes(len(damaged[place:place + 512]))
    return bytes(damaged)


def largest_tensor(path):
    """Where the largest tensor of a checkpoint begins in its file, and its size."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        with open(path, 'rb') as file:
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack('<HH', file.read(4))
        return entry.header_offset + 30 + name + extra, entry.file_size


def flip_a_bit(path):
    """Change one bit in the middle of the largest tensor of a checkpoint."""
    start, size = largest_tensor(path)
    with open(path, 'r+b') as file:
        file.seek(start + size // 2)
        byte = file.read(1)[0]
        file.seek(start + size // 2)
        file.write(bytes([byte ^ 1]))
