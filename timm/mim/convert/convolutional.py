"""Base class of the formats for ResNet and ConvNeXt models, and the tensor names of facebookresearch's ConvNeXt."""
import re
from typing import Any, Dict, Mapping, Optional, Tuple

import torch
import torch.nn as nn

from timm.models.convnext import ConvNeXt

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors, check_tensors
from .files import Source
from .foreign import ForeignFormat, check_same_layers
from .geometry import TensorProblem, count_modules, need

__all__ = ['ConvolutionalFormat', 'convnext_from_ours', 'convnext_to_ours']

# (convolutions of a block, blocks of each stage) of ResNets that timm has by name
_RESNET_NAMES = {
    (2, (2, 2, 2, 2)): 'resnet18',
    (2, (3, 4, 6, 3)): 'resnet34',
    (3, (3, 4, 6, 3)): 'resnet50',
    (3, (3, 4, 23, 3)): 'resnet101',
    (3, (3, 8, 36, 3)): 'resnet152',
    (3, (3, 24, 36, 3)): 'resnet200',
}
# (blocks of each stage, width of the first) of models that timm has by name, whose widths double with each stage
_CONVNEXT_NAMES = {
    ((3, 3, 9, 3), 96): 'tiny',
    ((3, 3, 27, 3), 96): 'small',
    ((3, 3, 27, 3), 128): 'base',
    ((3, 3, 27, 3), 192): 'large',
    ((3, 3, 27, 3), 256): 'xlarge',
}
_CONVNEXT_V2_NAMES = {
    ((2, 2, 6, 2), 40): 'atto',
    ((2, 2, 6, 2), 48): 'femto',
    ((2, 2, 6, 2), 64): 'pico',
    ((2, 2, 8, 2), 80): 'nano',
    ((3, 3, 9, 3), 96): 'tiny',
    ((3, 3, 27, 3), 128): 'base',
    ((3, 3, 27, 3), 192): 'large',
    ((3, 3, 27, 3), 352): 'huge',
}
# parts of names of a ConvNeXt block, theirs and ours
_BLOCK_NAMES = (
    ('.dwconv.', '.conv_dw.'), ('.pwconv1.', '.mlp.fc1.'), ('.pwconv2.', '.mlp.fc2.'),
    ('.grn.gamma', '.mlp.grn.weight'), ('.grn.beta', '.mlp.grn.bias'))
_FINAL_NORM = BACKBONE + 'head.norm.'


def convnext_to_ours(name: str) -> str:
    """Return our name of a ConvNeXt tensor for the name in facebookresearch's code, without prefixes."""
    name = re.sub(r'^stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.', name)
    name = re.sub(r'^downsample_layers\.0\.', 'stem.', name)
    name = re.sub(r'^downsample_layers\.(\d+)\.', r'stages.\1.downsample.', name)
    for theirs, ours in _BLOCK_NAMES:
        name = name.replace(theirs, ours)
    return name


def convnext_from_ours(name: str) -> str:
    """Return facebookresearch's name of a ConvNeXt tensor for our name, without prefixes."""
    for theirs, ours in _BLOCK_NAMES:
        name = name.replace(ours, theirs)
    name = re.sub(r'^stages\.(\d+)\.downsample\.', r'downsample_layers.\1.', name)
    name = re.sub(r'^stem\.', 'downsample_layers.0.', name)
    return re.sub(r'^stages\.(\d+)\.blocks\.(\d+)\.', r'stages.\1.\2.', name)


class ConvolutionalFormat(ForeignFormat):
    """Base class of formats whose encoder is a ResNet or a ConvNeXt.

    Their ConvNeXt has no final norm, since pre-training does not use it. Reading adds one with its initial weights, and
    writing refuses one with other weights.

    Attributes:
        encoder_prefix: Beginning of the names of the encoder's tensors. `names` translates the other tensors.
        has_grn: Its ConvNeXt is ConvNeXt V2.
    """
    encoder_alone = True
    encoder_prefix = ''
    has_grn = False

    def family(self, tensors: Mapping[str, Any]) -> str:
        return 'convnext' if BACKBONE + 'stem.0.weight' in tensors else 'resnet'

    def read(self, source: Source, hints: Hints) -> Checkpoint:
        """Read a checkpoint. Linear layers become 1x1 convolutions in models of timm that have these instead."""
        checkpoint = super().read(source, hints)
        expected = checkpoint.recipe.tensors()
        return checkpoint._replace(tensors={
            name: tensor.reshape(expected[name].shape) for name, tensor in checkpoint.tensors.items()})

    def to_ours(self, tensors: Tensors) -> Tensors:
        """Translate tensors to our names, and add the final norm of ConvNeXt."""
        is_convnext = self.encoder_prefix + 'downsample_layers.0.0.weight' in tensors

        def rename(name: str) -> Optional[str]:
            if not name.startswith(self.encoder_prefix):
                return self.names.ours(name)
            name = name[len(self.encoder_prefix):]
            return BACKBONE + (convnext_to_ours(name) if is_convnext else name)

        ours = self.renamed(tensors, rename)
        last_norm = ours.get(BACKBONE + 'stages.3.blocks.0.norm.weight') if is_convnext else None
        if last_norm is not None:
            ours[_FINAL_NORM + 'weight'] = torch.ones_like(last_norm)
            ours[_FINAL_NORM + 'bias'] = torch.zeros_like(last_norm)
        return ours

    def from_ours(self, tensors: Tensors) -> Tensors:
        """Translate tensors to the names of this format, and drop the final norm of ConvNeXt."""
        is_convnext = BACKBONE + 'stem.0.weight' in tensors

        def rename(name: str) -> Optional[str]:
            if not name.startswith(BACKBONE):
                return self.names.theirs(name)
            if is_convnext and name.startswith(_FINAL_NORM):
                return None
            name = name[len(BACKBONE):]
            return self.encoder_prefix + (convnext_from_ours(name) if is_convnext else name)

        return {
            name: tensor.flatten(1) if '.pwconv' in name and tensor.ndim == 4 else tensor
            for name, tensor in self.renamed(tensors, rename).items()}

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        self.check_method(checkpoint)
        subject = f'{self.name} cannot hold this model'
        tensors = checkpoint.tensors
        try:
            recipe = checkpoint.recipe or self._derive(tensors, hints)
        except TensorProblem as error:
            raise ConversionError(f'{subject}: {error.message(error.name)}.') from None
        check_tensors(recipe.tensors(), tensors, subject)
        family = {'ResNet': 'resnet', 'ConvNeXt': 'convnext'}.get(type(recipe.backbone).__name__)
        if family not in self.families:
            raise ConversionError(f'{subject}: it is for {self.holds}.')
        if family == 'convnext':
            self._check_convnext(recipe.backbone, tensors, subject)
        return recipe

    def _check_convnext(self, model: nn.Module, tensors: Tensors, subject: str) -> None:
        """Check that a ConvNeXt is one of facebookresearch's code: its stem, its blocks, and no final norm."""
        standard, _ = self._geometry(tensors)
        if standard['use_grn'] != self.has_grn:
            raise ConversionError(f'{subject}: it is for {self.holds}.')
        with torch.device('meta'):
            expected = ConvNeXt(**standard, num_classes=0, in_chans=tensors[BACKBONE + 'stem.0.weight'].shape[1])
        check_tensors(expected.state_dict(), model.state_dict(), subject)
        check_same_layers(expected, model, subject)
        for kind, value in (('weight', 1.), ('bias', 0.)):
            if not torch.all(tensors[_FINAL_NORM + kind] == value):
                raise ConversionError(
                    f'{subject}: {_FINAL_NORM}{kind} is not the initial one, and the format has no final norm.')

    def _derive(self, tensors: Tensors, hints: Hints) -> Recipe:
        method = self.method if any(not name.startswith(BACKBONE) for name in tensors) else None
        options = {} if method is None else {**self.method_options(tensors), **hints.options}
        if hints.model is not None:
            return Recipe(method, hints.model, hints.img_size, hints.model_kwargs, options)
        if self.family(tensors) == 'convnext':
            _, name = self._geometry(tensors)
            stem = need(tensors, BACKBONE + 'stem.0.weight', 4)
        else:
            name = _resnet_name(tensors)
            stem = need(tensors, BACKBONE + 'conv1.weight', 4)
        if name is None:
            raise ConversionError(
                f'{self.name}: timm has no model of these depths and widths by name: name yours with --model NAME.')
        kwargs = {} if stem.shape[1] == 3 else dict(in_chans=stem.shape[1])
        return Recipe(method, name, hints.img_size, {**kwargs, **hints.model_kwargs}, options)

    def method_options(self, tensors: Tensors) -> Dict[str, Any]:
        """Return the options of the method that follow from tensors with our names."""
        raise NotImplementedError

    def _geometry(self, tensors: Tensors) -> Tuple[Dict[str, Any], Optional[str]]:
        """Return the arguments of a ConvNeXt, and the name of the model in timm."""
        depths = tuple(count_modules(tensors, f'{BACKBONE}stages.{stage}.blocks.', 'norm.weight') for stage in range(4))
        dims = tuple(
            need(tensors, f'{BACKBONE}stages.{stage}.blocks.0.norm.weight', 1).shape[0] for stage in range(4))
        is_v2 = BACKBONE + 'stages.0.blocks.0.mlp.grn.weight' in tensors
        is_conv = tensors.get(BACKBONE + 'stages.0.blocks.0.mlp.fc1.weight', torch.empty(())).ndim == 4
        scaled = BACKBONE + 'stages.0.blocks.0.gamma' in tensors
        kind = (_CONVNEXT_V2_NAMES if is_v2 else _CONVNEXT_NAMES).get((depths, dims[0]))
        doubled = all(dim == dims[0] * 2 ** stage for stage, dim in enumerate(dims))
        name = f'convnext{"v2" if is_v2 else ""}_{kind}' if kind and doubled and scaled != is_v2 else None
        kwargs = dict(
            depths=depths, dims=dims, use_grn=is_v2, ls_init_value=1e-6 if scaled else None, conv_mlp=is_conv)
        return kwargs, name


def _resnet_name(tensors: Tensors) -> Optional[str]:
    depths = tuple(count_modules(tensors, f'{BACKBONE}layer{layer}.', 'conv1.weight') for layer in range(1, 5))
    width = need(tensors, BACKBONE + 'layer1.0.conv1.weight', 4).shape[0]
    convs = 3 if BACKBONE + 'layer1.0.conv3.weight' in tensors else 2
    return _RESNET_NAMES.get((convs, depths)) if width == 64 else None
