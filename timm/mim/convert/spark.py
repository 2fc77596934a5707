"""Format of keyu-tian/SparK.

The tensor names are those of `pretrain/spark.py` and `pretrain/decoder.py` in that repository. It publishes two files
per model: `*_spark_style.pth` with the decoder, and `*_timm_style.pth`, the encoder alone. Its ResNet is that of timm,
its ConvNeXt that of facebookresearch/ConvNeXt.
"""
from pathlib import Path
from typing import Any, Callable, Dict

import torch

from timm.models import is_model

from .checkpoint import Hints, Recipe, Tensors
from .convolutional import ConvolutionalFormat
from .fields import Fields
from .files import Source, write_file, write_pickle
from .foreign import Names
from .geometry import need

__all__ = ['SparK']


class SparK(ConvolutionalFormat):
    """SparK: a file with a dictionary `module`, or a flat one of the encoder alone."""
    name = 'keyutian-spark'
    holds = 'ResNet and ConvNeXt models, not ConvNeXt V2'
    method = 'spark'
    families = ('resnet', 'convnext')
    encoder_prefix = 'sparse_encoder.sp_cnn.'
    names = Names([
        ('dense_decoder.', 'decoder.'),
        ('densify_norms.', 'densify_norms.'),
        ('densify_projs.', 'densify_projs.'),
        ('mask_tokens.', 'mask_tokens.'),
    ])

    def recognises(self, source: Source) -> bool:
        names = source.tensors
        if any(name.startswith(self.encoder_prefix) for name in names):
            return True
        is_encoder = 'layer1.0.conv1.weight' in names or 'downsample_layers.0.0.weight' in names
        is_v2 = any('.grn.' in name for name in names)
        return is_encoder and not is_v2 and source.layout == 'flat' and 'model' not in source.recipe()

    def canonical(self, tensors: Tensors) -> Tensors:
        """Give the tensors of an encoder alone the names that they have in a SparK model."""
        if any(name.startswith(self.encoder_prefix) for name in tensors):
            return tensors
        return {self.encoder_prefix + name: tensor for name, tensor in tensors.items()}

    def hints(self, source: Source) -> Hints:
        """Read the model, the image size and the mask ratio."""
        values = Fields(source.metadata.get('spark'), 'The file')
        model = values.text('arch')
        ratio = values.fraction('mask_ratio')
        return Hints(
            model if model is not None and is_model(model) else None,
            values.size('input_size'),
            options={} if not ratio else dict(mask_ratio=ratio),
        )

    def method_options(self, tensors: Tensors) -> Dict[str, Any]:
        return dict(decoder_dim=need(tensors, 'decoder.dec.0.up_sample.weight', 4).shape[0])

    def constants(self, recipe: Recipe) -> Dict[str, Callable[[], torch.Tensor]]:
        """Return the buffers of the reference that it requires and does not read."""
        if recipe.method is None:
            return {}
        chans, size = recipe.module.in_chans, recipe.module.img_size
        shapes = dict(imn_m=(1, chans, 1, 1), imn_s=(1, chans, 1, 1), norm_black=(1, chans, *size))
        return {name: lambda shape=shape: torch.zeros(shape) for name, shape in shapes.items()}

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        if recipe.method is None:
            content = {name[len(self.encoder_prefix):]: tensor for name, tensor in tensors.items()}
        else:
            height, width = recipe.module.img_size
            size = height if height == width else (height, width)
            content = dict(arch=recipe.model, input_size=size, is_pretrain=True, module=tensors)
        write_file(path, force, write_pickle(content))
