"""Format of facebookresearch/ConvNeXt-V2.

The published files (`convnextv2_*_1k_224_fcmae.pt`) hold the encoder alone, in the names of `models/convnextv2.py`. A
checkpoint of `main_pretrain.py` holds the whole method (`models/fcmae.py`), with the encoder in the layout of sparse
convolutions (`models/convnextv2_sparse.py`). `remap_checkpoint_keys` in `utils.py` of that repository converts the
second layout to the first.
"""
import math
import re
from pathlib import Path
from typing import Any, Dict

import torch

from .checkpoint import BACKBONE, ConversionError, Hints, Recipe, Tensors
from .convolutional import ConvolutionalFormat, convnext_from_ours, convnext_to_ours
from .files import Source, write_file, write_pickle
from .foreign import Names
from .geometry import TensorProblem, count_modules, need

__all__ = ['FCMAE']

_PREDICTION = 'pred.proj.'


class FCMAE(ConvolutionalFormat):
    """FCMAE: a file with a dictionary `model`, of the encoder or of the whole method."""
    name = 'facebook-fcmae'
    holds = 'ConvNeXt V2 models'
    method = 'fcmae'
    families = ('convnext',)
    encoder_prefix = 'encoder.'
    has_grn = True
    names = Names([
        ('proj.', 'proj.'),
        ('mask_token', 'mask_token'),
        ('pred.', _PREDICTION),
        ('decoder.', 'decoder.'),
    ])

    def recognises(self, source: Source) -> bool:
        names = source.tensors
        if any(name.startswith('encoder.downsample_layers.') for name in names):
            return True
        is_v2 = any('.grn.' in name for name in names)
        return 'downsample_layers.0.0.weight' in names and is_v2 and source.layout in ('flat', 'model')

    def canonical(self, tensors: Tensors) -> Tensors:
        """Convert to the dense layout, with the prefix of the encoder in a file of the whole method, and GRN in 1-D."""
        if not any(name.startswith(self.encoder_prefix) for name in tensors):
            tensors = {self.encoder_prefix + name: tensor for name, tensor in tensors.items()}
        dense = {}
        for name, tensor in tensors.items():
            new_name, tensor = self._dense(name, tensor)
            if new_name in dense:
                raise ConversionError(f'{self.name}: {name} and another tensor are {new_name} in the dense layout.')
            dense[new_name] = tensor
        return dense

    def to_ours(self, tensors: Tensors) -> Tensors:
        ours = {
            convnext_to_ours(name) if name.startswith('decoder.') else name: tensor
            for name, tensor in super().to_ours(tensors).items()}
        return _reorder_prediction(ours, to_ours=True)

    def from_ours(self, tensors: Tensors) -> Tensors:
        reordered = _reorder_prediction(tensors, to_ours=False)
        return {
            convnext_from_ours(name) if name.startswith('decoder.') else name: tensor
            for name, tensor in super().from_ours(reordered).items()}

    def hints(self, source: Source) -> Hints:
        """Read options of FCMAE from the arguments that `main_pretrain.py` saves."""
        args = source.arguments()
        options = dict(norm_pix=args.flag('norm_pix_loss'), mask_ratio=args.fraction('mask_ratio') or None)
        whole = any(name.startswith(self.encoder_prefix) for name in source.tensors)
        return Hints(
            img_size=args.size('input_size'),
            options={name: value for name, value in options.items() if whole and value is not None},
        )

    def method_options(self, tensors: Tensors) -> Dict[str, Any]:
        return dict(
            decoder_dim=need(tensors, 'mask_token', 4).shape[1],
            decoder_depth=count_modules(tensors, 'decoder.', 'norm.weight'),
        )

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        if recipe.method is None:
            tensors = {name[len(self.encoder_prefix):]: tensor for name, tensor in tensors.items()}
            tensors = {name: _four_axes(tensor) if '.grn.' in name else tensor for name, tensor in tensors.items()}
        else:
            tensors = dict(self._sparse(name, tensor) for name, tensor in tensors.items())
        write_file(path, force, write_pickle(dict(model=tensors)))

    def _dense(self, name: str, tensor: torch.Tensor) -> Any:
        """Return name and tensor in the dense layout, with one axis for GRN."""
        if name.startswith(self.encoder_prefix):
            name = re.sub(r'\.(ln|linear)\.(weight|bias)$', r'.\2', name)
            if name.endswith('.kernel'):
                return name[:-len('kernel')] + 'weight', self._dense_kernel(name, tensor)
            if name.endswith('.bias') and tensor.ndim == 2 and tensor.shape[0] == 1:
                return name, tensor.flatten()
        if '.grn.' in name and tensor.ndim in (2, 4) and tensor.numel() == tensor.shape[-1]:
            return name, tensor.flatten()
        return name, tensor

    def _dense_kernel(self, name: str, kernel: torch.Tensor) -> torch.Tensor:
        """Convert a kernel (positions, in, out), or (positions, channels) of a depthwise convolution.

        Positions run over the columns of the dense kernel first, its rows are next to each other.
        """
        side = math.isqrt(kernel.shape[0]) if kernel.ndim in (2, 3) else 0
        if side == 0 or side * side != kernel.shape[0]:
            raise ConversionError(f'{self.name}: {name} is not the kernel of a sparse convolution.')
        if kernel.ndim == 2:
            kernel = kernel.unsqueeze(1)
        columns_and_rows = kernel.unflatten(0, (side, side))  # (columns, rows, in, out)
        return columns_and_rows.permute(3, 2, 1, 0).contiguous()

    def _sparse(self, name: str, tensor: torch.Tensor) -> Any:
        """Return name and tensor in the layout of the reference's checkpoints, the inverse of `_dense`."""
        if '.grn.' in name:
            return name, tensor.unsqueeze(0) if name.startswith(self.encoder_prefix) else _four_axes(tensor)
        if not name.startswith(self.encoder_prefix) or '.downsample_layers.0.' in '.' + name[len(self.encoder_prefix):]:
            return name, tensor  # the decoder and the stem are dense
        if '.norm.' in name or re.search(r'downsample_layers\.\d+\.0\.', name):
            return re.sub(r'\.(weight|bias)$', r'.ln.\1', name), tensor
        if '.pwconv' in name:
            return re.sub(r'\.(weight|bias)$', r'.linear.\1', name), tensor
        if name.endswith('.bias'):
            return name, tensor.unsqueeze(0)
        if tensor.ndim == 4:
            kernel = tensor.permute(3, 2, 1, 0).flatten(0, 1)  # (positions, in, out)
            is_depthwise = '.dwconv.' in name
            return name[:-len('weight')] + 'kernel', kernel.squeeze(1) if is_depthwise else kernel
        return name, tensor


def _four_axes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(1, 1, 1, -1)


def _reorder_prediction(tensors: Tensors, to_ours: bool) -> Tensors:
    """Reorder the outputs of the prediction: theirs are (row, column, channel) of a cell, ours channel first."""
    if _PREDICTION + 'weight' not in tensors:
        return tensors
    chans = need(tensors, BACKBONE + 'stem.0.weight', 4).shape[1]
    reordered = dict(tensors)
    for name in (_PREDICTION + 'weight', _PREDICTION + 'bias'):
        rows = tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0
        if rows == 0 or rows % chans:
            raise TensorProblem(name, 'missing, or not of whole pixels')
        sizes = (rows // chans, chans) if to_ours else (chans, rows // chans)
        reordered[name] = tensors[name].unflatten(0, sizes).transpose(0, 1).flatten(0, 1)
    return reordered
