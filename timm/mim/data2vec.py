"""data2vec: predict the features of masked patches, which a moving average of the model computes from the whole image.

Papers: `Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech and Language`
    - https://arxiv.org/abs/2212.07525 (data2vec 2.0)
    `data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language`
    - https://arxiv.org/abs/2202.03555

The formulas are those of facebookresearch/fairseq, `examples/data2vec/models/data2vec2.py` and `modalities/base.py`
(targets, loss), `modalities/modules.py` (decoder) and `data/data_utils.py` (masks).

Shape letters: B batch, M copies of an image, each with its own mask, h x w grid of cells, N = h * w cells, of which K
are visible and T masked, P prefix tokens, C width of the encoder, D width of the target.
"""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Type, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import trunc_normal_

from .backbone import (
    encode_visible,
    encode_with_mask_token,
    has_class_token,
    insert_mask_token,
    model_name,
    num_prefix_tokens,
    remove_unused,
    unsupported_reason,
)
from .convolutional_decoder import ConvolutionalDecoder, check_count
from .errors import MIMUnsupportedError
from .extraction import InsertMaskToken, VisibleExtraction, attention_maps, masked_intermediates
from .factory import register_mim
from .fast_path import embed_patches, embeds_patches, position_table, select_patches
from .inverse_block import inverse_squares_mask, inverse_squares_noise_size
from .layer_average import LayerAverage, drops_tokens
from .masking import scatter_patches, split_mask, upsample_mask, visible_count
from .meta_run import dry_run, dry_run_visible
from .output import MIMOutput, View
from .targets import full_precision, patchify
from .teacher import EMATeacherMethod, variety
from .visualize import paint_features

__all__ = ['Data2Vec', 'Data2VecMask']


class Data2VecMask(NamedTuple):
    """Masks of a batch of images, with the same number of masked cells in each.

    Attributes:
        cells: Masked cells of each copy of each image of shape (B, M, h, w) bool, True is masked.
        visible: Indices of the visible cells of shape (B * M, K), the copies of an image together.
        masked: Indices of the masked cells of shape (B * M, T).
    """
    cells: torch.Tensor
    visible: torch.Tensor
    masked: torch.Tensor


@register_mim('data2vec')
class Data2Vec(VisibleExtraction, EMATeacherMethod):
    """data2vec on any model that returns the outputs of its blocks (`forward_intermediates`).

    A model that can drop tokens encodes the visible patches only, and a convolutional decoder predicts the targets, as
    in data2vec 2.0. Any other model encodes all tokens, with a mask token in the place of masked ones, and a linear
    layer predicts the targets, as in data2vec 1. `drop_tokens` chooses for models that can do both.

    The teacher is a moving average of the model. It encodes each whole image once, and its targets serve `clone_batch`
    copies of the image with different masks. The target of a patch is the average over the last blocks of their
    normalised outputs, see `LayerAverage`.

    A mask is bool of shape (B, h, w), (B, h * w), or (B, M, h, w) for M copies, True is masked, with the same number of
    masked cells in each. Cells are patches, or, where all tokens are encoded, those of the model's feature map.
    Prediction and target have the shape (B, M, T, D). With `cls_loss` they have the shape (B, M, T + 1, D): the last
    row is that of the class token, whose target is the mean over all patches. The mask of the output has the shape
    (B, M, h, w).

    Watch `target_std` and `target_rank` in the `logs` of the output, which describe the last output of the teacher: a
    fall of either means that the features collapse.

    What differs from the reference: a target is the output of a block, where data2vec 2.0 takes the output of the
    block's MLP before the residual; models here are those of timm, with norms in front of attention and MLP, and
    without the reference's prenet; `cls_loss` does not depend on the batch size.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of cells to mask, rounded up to whole cells. If None, 0.8 with dropped tokens, otherwise 0.6.
        mask_length: Side of a visible block in cells, see `inverse_squares_mask`.
        mask_prob_adjust: Added to the visible share when blocks are counted, since blocks overlap.
        clone_batch: Number of copies of each image. If None, 16 with dropped tokens, otherwise 1. The batch size counts
            images, not copies.
        average_top_k_layers: Number of block outputs in the average. If None, three quarters of them, rounded up.
        instance_norm_target_layer: Normalise each output over the tokens of an image, channel by channel. If False,
            over the channels of each token, as in data2vec 1.
        layer_norm_targets: Normalise the average over the channels of each token.
        loss_beta: Size of the error from which on the loss is linear (smooth L1 loss). 0 for the squared error.
        loss_scale: Factor on the loss, which is summed over the channels. If None, 1 / sqrt(D).
        cls_loss: Weight of the loss of the class token, relative to that of a patch. If None, 2.56 for models with a
            class token that drop tokens, otherwise 0. The reference multiplies 0.01 by the number of copies on a
            process, 256 in its run of ViT-B.
        drop_tokens: Encode the visible patches only. If None, wherever the model can.
        mask_noise_std: Standard deviation of the noise in masked cells in front of the decoder, in training only.
        decoder_dim: Width of the decoder. The width of the encoder if None.
        decoder_layers: Number of convolutions of the decoder.
        decoder_kernel: Kernel size of the convolutions, an odd number.
        decoder_groups: Number of groups of the convolutions. If None, 16, or the next smaller number that divides the
            widths.
        ema_decay: Momentum of the teacher at the beginning.
        ema_end_decay: Momentum of the teacher from `ema_anneal_end` on; it grows linearly up to there.
        ema_anneal_end: Share of the training, in (0, 1]. The reference's 100,000 of 375,300 updates are 0.27.

    Raises:
        MIMUnsupportedError: The model does not implement the protocol, has no `forward_intermediates`, or has patch
            dropout.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    works = (
        'list_mim_models(\'data2vec\') lists the models that work, vit_base_patch16_224 or '
        'swin_base_patch4_window7_224 for example')
    reconstructs_pixels = False
    losses_compare = False

    @classmethod
    def unsupported_reason(cls, model: Union[nn.Module, Type[nn.Module]]) -> Optional[str]:
        """Return why the method does not support a model or model class, or None if it does."""
        model_cls = model if isinstance(model, type) else type(model)
        reason = unsupported_reason(model, ('features_to_map',))
        if reason is None and not drops_tokens(model_cls):
            reason = unsupported_reason(model, ('map_tokens', 'patch_grid'))
        if reason is None and not hasattr(model_cls, 'forward_intermediates'):
            reason = f'{model_cls.__name__} has no forward_intermediates, which gives the outputs of its blocks'
        return reason

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: Optional[float] = None,
            mask_length: int = 3,
            mask_prob_adjust: float = 0.07,
            clone_batch: Optional[int] = None,
            average_top_k_layers: Optional[int] = None,
            instance_norm_target_layer: bool = True,
            layer_norm_targets: bool = True,
            loss_beta: float = 0.,
            loss_scale: Optional[float] = None,
            cls_loss: Optional[float] = None,
            drop_tokens: Optional[bool] = None,
            mask_noise_std: float = 0.01,
            decoder_dim: Optional[int] = None,
            decoder_layers: int = 6,
            decoder_kernel: int = 3,
            decoder_groups: Optional[int] = None,
            ema_decay: float = 0.9998,
            ema_end_decay: float = 0.99999,
            ema_anneal_end: float = 0.27,
    ) -> None:
        can_drop = drops_tokens(type(backbone))
        if drop_tokens and not can_drop:
            raise MIMUnsupportedError(f'drop_tokens: {unsupported_reason(backbone, ("keep_tokens",))}.')
        self.drop_tokens = can_drop if drop_tokens is None else drop_tokens
        self.mask_grid = 'keep_grid' if self.drop_tokens else 'patch_grid'
        super().__init__(backbone, img_size)
        if not self.drop_tokens:
            reason = unsupported_reason(backbone, ('map_tokens', 'patch_grid'))
            if reason:
                raise MIMUnsupportedError(f'drop_tokens=False: {reason}.')

        self.clone_batch = (16 if self.drop_tokens else 1) if clone_batch is None else clone_batch
        check_count('clone_batch', self.clone_batch)
        check_count('mask_length', mask_length)
        for name, value in (('loss_beta', loss_beta), ('mask_noise_std', mask_noise_std), ('cls_loss', cls_loss or 0.)):
            if value < 0:
                raise ValueError(f'{name} must be 0 or more, got {value!r}.')
        if not 0 < ema_anneal_end <= 1:
            raise ValueError(f'ema_anneal_end must be a share of the training in (0, 1], got {ema_anneal_end!r}.')

        features = dry_run(backbone, self.in_chans, self.img_size)
        self.cell = self._find_cell(features.stride)
        self.grid_size = tuple(size // side for size, side in zip(self.img_size, self.cell))
        self.num_cells = math.prod(self.grid_size)
        self.mask_ratio = (0.8 if self.drop_tokens else 0.6) if mask_ratio is None else mask_ratio
        self.mask_length = mask_length
        self.num_visible = visible_count(self.num_cells, self.mask_ratio)
        visible_share = self.num_visible / self.num_cells + mask_prob_adjust
        self.num_squares = max(0, int(self.num_cells * visible_share / mask_length ** 2))
        self.num_prefix_tokens = num_prefix_tokens(backbone)
        self.cls_loss = self._check_cls_loss(cls_loss)

        self.layer_average = LayerAverage(
            backbone, self.in_chans, self.img_size, self.grid_size, features, average_top_k_layers,
            instance_norm_target_layer, layer_norm_targets)
        target_dim = self.layer_average.dim
        self.loss_beta = loss_beta
        self.loss_scale = 1 / math.sqrt(target_dim) if loss_scale is None else loss_scale
        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        if self.drop_tokens:
            tokens = dry_run_visible(backbone, self.in_chans, self.img_size, self.num_visible)
            unused = tokens.unused if self.cls_loss else {*tokens.unused, *features.unused}
            decoder = ConvolutionalDecoder(
                self.grid_size, tokens.channels, target_dim, decoder_dim or tokens.channels, decoder_layers,
                decoder_kernel, decoder_groups, mask_noise_std, **dd)
            if self.cls_loss and tokens.channels != target_dim:
                raise MIMUnsupportedError(
                    f'{model_name(backbone)} returns {tokens.channels} channels, its blocks {target_dim}: set cls_loss '
                    'to 0.')
        else:
            unused = features.unused
            decoder = nn.Linear(features.channels, target_dim, **dd)
            trunc_normal_(decoder.weight, std=.02)
            nn.init.zeros_(decoder.bias)
        remove_unused(backbone, sorted(unused))

        self.add_target_encoder((ema_decay, ema_end_decay))
        self.ema_anneal_end = ema_anneal_end
        self.decoder = decoder
        if not self.drop_tokens:
            self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.patch_dim, **dd))
            trunc_normal_(self.mask_token, std=.02)

    def predict(self, images: torch.Tensor, mask: Data2VecMask) -> torch.Tensor:
        """Predict the targets of masked cells.

        Args:
            images: Images of shape (B, C, H, W), whose pixels are 0 where every copy masks them.
            mask: Masks of the copies.

        Returns:
            Features of shape (B, M, T, D), or (B, M, T + 1, D) with `cls_loss`.
        """
        if self.drop_tokens:
            tokens = self._encode_visible(images, mask)
            class_token, patches = tokens[:, :1], tokens[:, self.num_prefix_tokens:]
            prediction = self.decoder(patches, mask.visible, mask.masked)
            if self.cls_loss:
                prediction = torch.cat([prediction, class_token.to(prediction.dtype)], dim=1)
        else:
            patches = upsample_mask(mask.cells.flatten(0, 1), self._patches_per_cell())
            features = encode_with_mask_token(self.backbone, self._copies(images, mask), patches, self.mask_token)
            prediction = self.decoder(select_patches(features.flatten(2).transpose(1, 2), mask.masked))
        return full_precision(prediction).unflatten(0, mask.cells.shape[:2])

    @torch.no_grad()
    def make_target(self, images: torch.Tensor, mask: Data2VecMask) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute the targets with one pass of the teacher over whole images.

        Returns:
            Targets in the shape of the prediction, and measures of how much the teacher's last output varies.
        """
        outputs = self.layer_average.outputs(self.target_encoder, images)
        target = self.layer_average.average(outputs)
        num_copies = mask.cells.shape[1]
        chosen = select_patches(target, mask.masked.unflatten(0, (-1, num_copies)).flatten(1))  # (B, M * T, D)
        chosen = chosen.unflatten(1, (num_copies, -1))
        if self.cls_loss:
            mean = target.mean(dim=1)[:, None, None].expand(-1, num_copies, -1, -1)  # (B, M, 1, D)
            chosen = torch.cat([chosen, mean], dim=2)
        last = outputs[-1]
        return chosen, variety(F.layer_norm(last, last.shape[-1:]))

    def compare(
            self,
            prediction: torch.Tensor,
            target: Tuple[torch.Tensor, Dict[str, torch.Tensor]],
            mask: Data2VecMask,
    ) -> MIMOutput:
        """Compute the loss: summed over channels, averaged over masked cells, and the class token's beside it."""
        target, logs = target
        return MIMOutput(self._loss(prediction, target), prediction, target, mask.cells, logs)

    def _loss(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.loss_beta:
            error = F.smooth_l1_loss(prediction, target, reduction='none', beta=self.loss_beta)
        else:
            error = F.mse_loss(prediction, target, reduction='none')
        error = error.sum(dim=-1) * self.loss_scale  # (B, M, T) or (B, M, T + 1)
        if not self.cls_loss:
            return error.mean()
        return error[..., :-1].mean() + self.cls_loss * error[..., -1].mean()

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape (B, values per image) of the noise for the masks of all copies of the images of a batch."""
        return batch_size, self.clone_batch * inverse_squares_noise_size(self.grid_size, self.num_squares)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make masks (B, M, h, w) bool from noise, see `inverse_squares_mask`.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Ignored, since the method accepts one image size only.
        """
        noise = noise.unflatten(1, (self.clone_batch, -1)).flatten(0, 1)
        mask = inverse_squares_mask(noise, self.grid_size, self.num_visible, self.num_squares, self.mask_length)
        return mask.reshape(-1, self.clone_batch, *self.grid_size)

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> Data2VecMask:
        """Make the masks of all copies from noise."""
        return self._split(self.make_mask(noise), self.num_visible)

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> Data2VecMask:
        """Check a caller's mask, and find the indices of its cells.

        The host reads the number of masked cells from the device, which it has to wait for.

        Raises:
            ValueError: Shape, dtype or device are wrong, the number of masked cells differs between copies, or no cell
                or every cell is masked.
        """
        batch_size, grid = len(images), self.grid_size
        copies = mask.shape[1] if mask.ndim == 4 else 1
        one_copy = mask.shape in ((batch_size, *grid), (batch_size, self.num_cells))
        if mask.dtype != torch.bool or not copies or not (one_copy or mask.shape == (batch_size, copies, *grid)):
            raise ValueError(
                f'mask must be bool of shape {(batch_size, *grid)}, {(batch_size, self.num_cells)} or, for several '
                f'copies M, ({batch_size}, M, {grid[0]}, {grid[1]}), got {mask.dtype} of shape {tuple(mask.shape)}.')
        if mask.device != images.device:
            raise ValueError(f'mask must be on the device of the images, {images.device}, got {mask.device}.')
        mask = mask.reshape(batch_size, copies, *grid)
        counts = sorted(set((~mask).flatten(2).sum(dim=2).flatten().tolist()))
        if len(counts) != 1 or counts[0] in (0, self.num_cells):
            raise ValueError(
                f'mask must leave the same number of cells visible in each copy, from 1 to {self.num_cells - 1}, got '
                f'{", ".join(map(str, counts))}.')
        return self._split(mask, counts[0])

    def hidden_patches(self, mask: Data2VecMask) -> torch.Tensor:
        """Return the patches (B, rows, columns) bool that all copies of an image mask."""
        return upsample_mask(mask.cells.all(dim=1), self._patches_per_cell())

    def momentum_at(self, progress: float) -> float:
        """Return the momentum: it grows linearly up to `ema_anneal_end`, and stays there."""
        return super().momentum_at(min(progress / self.ema_anneal_end, 1.))

    def forward_intermediates(self, images: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        """Return the hidden states of the model for masked images.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked cells of shape (B, h, w) or (B, h * w) bool, True is masked.
            **options: Options of the model's `forward_intermediates`, for a model that encodes all tokens.

        Returns:
            `VisibleIntermediates` of a model that drops tokens, otherwise what its `forward_intermediates` returns.

        Raises:
            MIMUnsupportedError: The model has no list of blocks, or overrides `embed_patches`.
        """
        mask = self._one_copy(mask)
        if self.drop_tokens:
            return super().forward_intermediates(images, mask)
        return masked_intermediates(self.backbone, *self._insert_masked(images, mask), **options)

    def attention_maps(self, images: torch.Tensor, mask: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Return the attention maps of the model by module name, in eval mode, see `forward_intermediates`."""
        mask = self._one_copy(mask)
        if self.drop_tokens:
            return super().attention_maps(images, mask)
        return attention_maps(self.backbone, *self._insert_masked(images, mask))

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of a constant prediction, the mean of all targets."""
        mean = output.target.mean(dim=(0, 1, 2), keepdim=True)
        return dict(loss_of_constant=self._loss(mean.expand_as(output.target), output.target))

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of the images, of two masked copies, and of the features: targets and predictions.

        The features are shown by their first principal components over the batch, one for each image channel.
        """
        mask = self.drawn_mask(noise, self.img_size)
        views = [View('original', images)]
        for number, cells in enumerate(mask.cells[:, :2].unbind(1), start=1):
            views.append(View(f'masked copy {number}', images, self._pixel_hole(cells)))
        first = self._split(mask.cells[:, :1], self.num_visible)
        prediction = self.predict(self.blank(images, first), first)[:, 0, :first.masked.shape[1]]
        pictures = paint_features(
            self.layer_average.average(self.layer_average.outputs(self.target_encoder, images)),
            scatter_patches(prediction, first.masked, self.num_cells),
            grid_size=self.grid_size,
            img_size=self.img_size,
            channels=self.in_chans,
        )
        views.append(View('target features', pictures[0]))
        views.append(View('predicted features', pictures[1], self._pixel_hole(~first.cells[:, 0])))
        return views

    def _find_cell(self, feature_stride: Tuple[int, int]) -> Tuple[int, int]:
        """Return the size (height, width) in pixels of what a mask selects and a target describes."""
        if self.drop_tokens and feature_stride != self.patch_stride:
            raise MIMUnsupportedError(
                f'{type(self.backbone).__name__} returns features of stride {feature_stride}; with dropped tokens '
                f'data2vec needs the stride of its patches, {self.patch_stride}: set drop_tokens=False.')
        if any(side % patch for side, patch in zip(feature_stride, self.patch_stride)):
            raise MIMUnsupportedError(
                f'{type(self.backbone).__name__} returns features of stride {feature_stride}, which is not a multiple '
                f'of that of its patches, {self.patch_stride}.')
        return feature_stride

    def _check_cls_loss(self, cls_loss: Optional[float]) -> float:
        possible = self.drop_tokens and self.num_prefix_tokens > 0 and has_class_token(self.backbone)
        if cls_loss and not possible:
            raise ValueError(
                f'cls_loss must be 0: {model_name(self.backbone)} has no class token, or encodes all tokens.')
        return (2.56 if possible else 0.) if cls_loss is None else cls_loss

    def _encode_visible(self, images: torch.Tensor, mask: Data2VecMask) -> torch.Tensor:
        """Encode the visible patches of each copy as tokens (B * M, P + K, C)."""
        if not (self.fast_path and embeds_patches(self.backbone)):
            return encode_visible(self.backbone, self._copies(images, mask), mask.visible)
        # patches do not overlap: embed them once for all copies
        prefix, positions = position_table(self.backbone, self.grid_size)
        patches = embed_patches(self.backbone, patchify(images, self.patch_stride)) + positions
        places = mask.visible.unflatten(0, (-1, mask.cells.shape[1]))  # (B, M, K)
        patches = select_patches(patches, places.flatten(1)).reshape(*mask.visible.shape, -1)
        return self.backbone.forward_stages(torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1))

    def _copies(self, images: torch.Tensor, mask: Data2VecMask) -> torch.Tensor:
        """Return the copies (B * M, C, H, W) of images, each with its own masked pixels set to 0."""
        num_copies = mask.cells.shape[1]
        if num_copies == 1:
            return images
        copies = images.repeat_interleave(num_copies, dim=0)
        return copies.masked_fill(self._pixel_hole(mask.cells.flatten(0, 1)), 0.)

    def _pixel_hole(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the pixels (B, 1, H, W) bool under masked cells (B, h, w)."""
        return upsample_mask(cells, self.cell).unsqueeze(1)

    def _patches_per_cell(self) -> Tuple[int, int]:
        return self.cell[0] // self.patch_stride[0], self.cell[1] // self.patch_stride[1]

    def _one_copy(self, mask: torch.Tensor) -> torch.Tensor:
        if mask.ndim == 4 and mask.shape[1] != 1:
            raise ValueError(f'mask must have one copy of each image here, got {mask.shape[1]}.')
        return mask

    def _insert_masked(self, images: torch.Tensor, mask: torch.Tensor) -> Tuple[torch.Tensor, InsertMaskToken]:
        """Return images whose masked pixels are 0, and the function that inserts the mask token."""
        self._check_images(images)
        mask = self.given_mask(mask, images)
        return self.blank(images, mask), insert_mask_token(self.hidden_patches(mask), self.mask_token)

    def _split(self, cells: torch.Tensor, num_visible: int) -> Data2VecMask:
        return Data2VecMask(cells, *split_mask(cells.flatten(2).flatten(0, 1), num_visible))
