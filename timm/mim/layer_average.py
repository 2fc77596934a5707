"""Target of data2vec: the average of what the last blocks of a model return for whole images.

Shape letters: B batch, h x w grid of cells, N = h * w, D width of the target.
"""
from typing import List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from .backbone import feature_map, model_name, unsupported_reason
from .meta_run import FeatureMap, run_on_meta
from .targets import full_precision

__all__ = ['LayerAverage', 'drops_tokens']


class LayerAverage:
    """Average of the normalised outputs of a model's last blocks, for each cell of a grid.

    A model in stages gives one output for each stage or block; only those in the shape of the last one count. The
    features of the model are the only output if no block has one feature for each cell.

    Args:
        backbone: Model.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        grid_size: Grid (h, w) of the cells.
        features: Properties of the model's feature map.
        count: Number of outputs in the average. If None, three quarters of them, rounded up.
        instance_norm: Normalise each output over the tokens of an image, channel by channel. If False, over the
            channels of each token.
        layer_norm: Normalise the average over the channels of each token.

    Attributes:
        layers: Numbers of the block outputs in the average; none if the features of the model are the target.
        dim: Width of the target.

    Raises:
        MIMUnsupportedError: The model does not return the outputs of its blocks.
        ValueError: `count` is not a number from 1 to the number of outputs.
    """

    def __init__(
            self,
            backbone: nn.Module,
            in_chans: int,
            img_size: Tuple[int, int],
            grid_size: Tuple[int, int],
            features: FeatureMap,
            count: Optional[int],
            instance_norm: bool,
            layer_norm: bool,
    ) -> None:
        self.img_size, self.grid_size = img_size, grid_size
        self.instance_norm, self.layer_norm = instance_norm, layer_norm
        shapes: List[Tuple[int, ...]] = []

        def run(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
            outputs = self._block_outputs(replica, images)
            shapes[:] = [tuple(x.shape) for x in outputs]
            return outputs[-1]

        run_on_meta(backbone, in_chans, img_size, run, 'does not return the outputs of its blocks')
        layers = [number for number, shape in enumerate(shapes) if self._on_grid(shape)]
        widths = [shapes[number][2 if len(shapes[number]) == 3 else 1] for number in layers]
        layers = [number for number, width in zip(layers, widths) if width == widths[-1]]
        available = max(1, len(layers))  # the features of the model, if there are no others
        count = -(-available * 3 // 4) if count is None else count
        if not isinstance(count, int) or not 1 <= count <= available:
            raise ValueError(
                f'average_top_k_layers must be a number from 1 to {available}, the block outputs of '
                f'{model_name(backbone)} in the shape of the last one, got {count!r}.')
        self.layers = layers[-count:]
        self.dim = widths[-1] if widths else features.channels

    def average(self, outputs: List[torch.Tensor]) -> torch.Tensor:
        """Average outputs (B, N, D) after each of them is normalised, and normalise the average."""
        if self.instance_norm:
            outputs = [_instance_norm(x) for x in outputs]
        else:
            outputs = [F.layer_norm(x, x.shape[-1:]) for x in outputs]
        target = sum(outputs) / len(outputs)
        return F.layer_norm(target, target.shape[-1:]) if self.layer_norm else target

    @torch.no_grad()
    def outputs(self, encoder: nn.Module, images: torch.Tensor) -> List[torch.Tensor]:
        """Return the outputs (B, N, D) of a model for whole images that belong to the average, in float32."""
        if self.layers:
            outputs = self._block_outputs(encoder, images, self.layers)
        else:
            outputs = [feature_map(encoder, images)]
        return [full_precision(x if x.ndim == 3 else x.flatten(2).transpose(1, 2)) for x in outputs]

    def _block_outputs(
            self,
            encoder: nn.Module,
            images: torch.Tensor,
            indices: Optional[List[int]] = None,
    ) -> List[torch.Tensor]:
        """Return block outputs by number, all if None, as tokens (B, N, D) or maps (B, D, h, w)."""
        # maps of Gemma4 would wait for the device; Hiera drops units of several patches, and has no other format
        in_patches = drops_tokens(type(encoder)) and (
            encoder.keep_grid(self.img_size) == encoder.patch_grid(self.img_size))
        return encoder.forward_intermediates(
            images, indices=indices, intermediates_only=True, output_fmt='NLC' if in_patches else 'NCHW')

    def _on_grid(self, shape: Tuple[int, ...]) -> bool:
        """Whether a block output of a shape (B, N, D) or (B, D, h, w) has one feature for each cell."""
        if len(shape) == 3:
            return shape[1] == self.grid_size[0] * self.grid_size[1]
        return shape[2:] == self.grid_size


def drops_tokens(model_cls: type) -> bool:
    """Whether the models of a class can drop tokens."""
    return unsupported_reason(model_cls, ('keep_tokens',)) is None


def _instance_norm(x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Normalise tokens (B, N, D) over the tokens of each image, channel by channel."""
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()
