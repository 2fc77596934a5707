"""MAE: encode the visible patches only, and predict the pixels of the masked patches with a small transformer.

Paper: `Masked Autoencoders Are Scalable Vision Learners`
    - https://arxiv.org/abs/2111.06377

The formulas are those of facebookresearch/mae, `models_mae.py`.

Shape letters: B batch, C image channels, H x W pixels, h x w grid of patches, N = h * w patches, K visible patches, M
masked patches, P prefix tokens, D pixels times channels of a patch.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.models._embed_stages import gather_patches

from .backbone import num_prefix_tokens, remove_unused, to_pair
from .cross_decoder import CrossDecoder
from .decoder import MaskedDecoder, init_xavier
from .extraction import BlockRecorder, VisibleExtraction
from .factory import register_mim
from .fast_path import decode_masked, select_patches
from .masking import (
    block_mask,
    block_noise_size,
    random_mask,
    scatter_patches,
    share_count,
    split_mask,
    unit_grid,
    upsample_mask,
    visible_count,
)
from .meta_run import dry_run_maps, dry_run_visible
from .native_aspect import (
    NaFlexBatch,
    NaFlexMask,
    NaFlexMethod,
    attention_mask,
    encode_visible_naflex,
    share_masked,
    smallest_units,
    split_naflex_mask,
)
from .output import WITH_TRUE_STATISTICS, MIMOutput, View
from .targets import full_precision, normalize_patches, patch_statistics, patchify, unpatchify

__all__ = ['MAE']


class MAEMask(NamedTuple):
    """Mask of a batch of images, with the same number of masked patches in each sample.

    Attributes:
        patches: Masked patches of shape (B, h, w) bool, True is masked.
        visible: Indices of the visible patches of shape (B, K).
        masked: Indices of the masked patches to predict of shape (B, M): all of them unless `predict_ratio` is below 1.
    """
    patches: torch.Tensor
    visible: torch.Tensor
    masked: torch.Tensor


@register_mim('mae')
class MAE(VisibleExtraction, NaFlexMethod):
    """Masked autoencoder on any model that can drop tokens.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with the same number of masked patches in each
    sample. Prediction and target are the masked patches, see `predict`.

    Prefix tokens (class, register, distillation) go through the decoder in front of the patches, with a position
    embedding of zeros, like the class token in the reference; no pixels are predicted for them. A mask covers patches,
    or, in Hiera, mask units of 8 x 8 patches.

    A NaFlexVit also takes NaFlex batches, see `NaFlexMethod`: the share of each image's valid patches that is masked is
    exact. Positions of the decoder are then those of the rows and columns of patches, counted from the upper left
    corner.

    With `decoder='cross'` the decoder is that of CrossMAE: mask tokens attend to visible patches and prefix tokens, not
    to each other. Each of its blocks gets its own mixture of the outputs of the model's blocks, see `CrossDecoder`; of
    models whose blocks return tokens of several shapes, it takes those of the shape of the features, and of CaiT the
    features themselves. As in the reference, the model's final norm then gets no gradient, and is frozen. CrossMAE
    names the share of all patches that it predicts, `predict_ratio` is the share of the masked ones: for a mask ratio
    of 0.75, a third of them are the paper's 0.25.

    Pixio is MAE with mask units of 4 x 4 patches, a decoder of 32 blocks, learned positions in the decoder, and a model
    with 8 class tokens: one class token and 7 registers (`reg_tokens=7`) with positions.

    The encoder keeps its own initial weights and position embedding. To start like the reference, give the model fixed
    sine-cosine positions and a Xavier initialisation before you pass it.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of mask units to mask, rounded up to whole units.
        mask_unit: Size of a mask unit in pixels, one number or (height, width): a multiple of the patch that divides
            the image. A single patch if None.
        norm_pix: Predict the pixels of each patch normalised by the patch's own mean and variance.
        decoder: 'plain' (self-attention among visible and masked patches) or 'cross' (the decoder of CrossMAE).
        predict_ratio: Share of the masked patches to predict, chosen at random, to the nearest number of whole patches.
            Below 1 only with `decoder='cross'`. All are predicted if the caller of `forward` gives a mask.
        decoder_dim: Width of the decoder.
        decoder_depth: Number of blocks of the decoder.
        decoder_heads: Number of attention heads of the decoder.
        decoder_pos_embed: Position embedding of the decoder, 'sincos' or 'learn'.
        masking: 'random' masks single units, 'block' masks rectangular blocks of units as BEiT does.
        reference_count: Compute the number of visible patches in floats as the reference does, see `visible_count`.

    Raises:
        MIMUnsupportedError: The model does not implement the protocol, cannot drop tokens, or has patch dropout.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    protocol = ('keep_tokens',)
    mask_grid = 'keep_grid'
    works = (
        'list_mim_models(\'mae\') lists the models that work, vit_base_patch16_224 for example; SimMIM also works '
        'with models that cannot drop tokens')

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.75,
            mask_unit: Optional[Any] = None,
            norm_pix: bool = True,
            decoder: str = 'plain',
            predict_ratio: float = 1.0,
            decoder_dim: int = 512,
            decoder_depth: int = 8,
            decoder_heads: int = 16,
            decoder_pos_embed: str = 'sincos',
            masking: str = 'random',
            reference_count: bool = False,
    ) -> None:
        super().__init__(backbone, img_size)
        self.mask_ratio = mask_ratio
        self.masking = self._check_masking(masking)
        self.reference_count = reference_count
        self.norm_pix = norm_pix
        self.reconstructs_pixels = not norm_pix
        self.grid_size = self._patch_grid(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.mask_unit = self.patch_stride if mask_unit is None else to_pair(mask_unit, 'mask_unit')
        self.unit_grid = unit_grid(self.img_size, self.mask_unit, self.patch_stride)
        self.num_units = self.unit_grid[0] * self.unit_grid[1]
        self.num_visible_units = visible_count(self.num_units, mask_ratio, reference_count)
        self.num_visible = self.num_visible_units * (self.num_patches // self.num_units)
        self.num_prefix_tokens = num_prefix_tokens(backbone)
        if decoder not in ('plain', 'cross'):
            raise ValueError(f"decoder must be 'plain' or 'cross', got {decoder!r}.")
        self.num_predicted = share_count(self.num_patches - self.num_visible, predict_ratio, 'predict_ratio')
        if decoder == 'plain' and predict_ratio != 1:
            raise ValueError(
                f"predict_ratio {predict_ratio} needs decoder='cross': in the plain decoder every masked patch attends "
                'to all others, so that all are computed.')

        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        create_decoder = self._create_plain_decoder if decoder == 'plain' else self._create_cross_decoder
        create_decoder(decoder_dim, decoder_depth, decoder_heads, decoder_pos_embed, dd)
        self.decoder_pred = nn.Linear(
            decoder_dim, self.patch_stride[0] * self.patch_stride[1] * self.in_chans, **dd)
        init_xavier(self.decoder_pred)

    def _create_plain_decoder(self, dim: int, depth: int, heads: int, pos_embed: str, dd: Dict[str, Any]) -> None:
        self.recorder = None
        self.decoder = MaskedDecoder(
            self.grid_size, dim, depth, heads, num_prefix_tokens=self.num_prefix_tokens, pos_embed=pos_embed, **dd)
        tokens = dry_run_visible(self.backbone, self.in_chans, self.img_size, self.num_visible)
        remove_unused(self.backbone, tokens.unused)
        self.decoder_embed = nn.Linear(tokens.channels, dim, **dd)
        init_xavier(self.decoder_embed)

    def _create_cross_decoder(self, dim: int, depth: int, heads: int, pos_embed: str, dd: Dict[str, Any]) -> None:
        maps = dry_run_maps(self.backbone, self.in_chans, self.img_size, self.num_visible)
        self.mixed_blocks = maps.blocks
        num_maps = 1 if maps.blocks is None else len(maps.blocks)
        self.decoder = CrossDecoder(self.grid_size, maps.channels, num_maps, dim, depth, heads, pos_embed, **dd)
        remove_unused(self.backbone, maps.unused)
        self.recorder = BlockRecorder(self.backbone)

    def predict(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Predict the masked patches.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Mask.

        Returns:
            Masked patches in row-major order of shape (B, M, D), each flattened in the order (row, column, channel).
        """
        if self.recorder is not None:
            decoded = self.decoder(self._encode_maps(images, mask), mask.masked)
        elif self.fast_path:
            tokens = self.decoder_embed(self.encode_visible(images, mask.visible, self.grid_size))
            decoded = decode_masked(self.decoder, tokens, mask.visible, mask.masked)
        else:
            decoded = gather_patches(self._decode(images, mask), mask.masked)
        return full_precision(self.decoder_pred(decoded))

    def make_target(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Return the masked patches of images in the shape of the prediction; normalise each if `norm_pix` is set."""
        target = full_precision(select_patches(patchify(images, self.patch_stride), mask.masked))
        return normalize_patches(target) if self.norm_pix else target

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: 'MAEMask') -> MIMOutput:
        """Compute the mean squared error."""
        # each sample has the same number of masked patches, so this equals the reference's sum over all masked patches
        # divided by their number
        loss = F.mse_loss(prediction, target, reduction='none').mean(dim=-1).mean()
        return MIMOutput(loss, prediction, target, mask.patches)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make a mask (B, h, w) bool from noise. If masking is 'random', patches with the smallest noise are visible.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Ignored, since the method accepts one image size only.
        """
        if self.masking == 'block':
            noise = noise[:, :block_noise_size(self.unit_grid)]
            mask = block_mask(noise, self.unit_grid, self.num_units - self.num_visible_units)
        else:
            mask = ~random_mask(noise[:, :self.num_units], self.num_visible_units)
        scale = self.mask_unit[0] // self.patch_stride[0], self.mask_unit[1] // self.patch_stride[1]
        return upsample_mask(mask.unflatten(1, self.unit_grid), scale)

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> 'MAEMask':
        """Make a mask from noise, and choose the patches to predict: those with the largest of the last N values."""
        mask = self._split(self.make_mask(noise), self.num_visible)
        if self.num_predicted == self.num_patches - self.num_visible:
            return mask
        order = noise[:, -self.num_patches:].masked_fill(~mask.patches.flatten(1), -1.)
        # a stable sort resolves ties in the same way on every device
        chosen = order.argsort(dim=1, descending=True, stable=True)[:, :self.num_predicted]
        return mask._replace(masked=chosen.sort(dim=1).values)

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> 'MAEMask':
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w), and find the indices of its patches.

        The host reads the number of masked patches from the device, which it has to wait for.

        Raises:
            ValueError: Shape, dtype or device are wrong, the number of masked patches differs between samples, or no
                patch or every patch is masked.
        """
        mask = self._split(self._check_mask(mask, images))
        if mask.masked.shape[1] == 0:
            raise ValueError('mask must mask at least one patch, got none.')
        return mask

    def hidden_patches(self, mask: 'MAEMask') -> torch.Tensor:
        """Return the patches (B, h, w) bool whose pixels the model must not see."""
        return mask.patches

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all patches of images from the visible ones, without any correction.

        With `norm_pix` each predicted patch lacks its brightness and contrast, so the result is not a picture. The
        missing mean and variance cannot be restored without looking at the masked pixels.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked. The same number per sample.

        Returns:
            Prediction of shape (B, C, H, W) float32; each patch is normalised if `norm_pix` is set.
        """
        return unpatchify(self._predict_all(images, mask), self.patch_stride, self.grid_size)

    def reconstruct_with_target_statistics(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all patches and give each the true mean and variance of its pixels. Use this for pictures only.

        Masked pixels leak into the result: brightness and contrast of every patch are correct whatever the model
        predicts. Never measure a method with it, and label such pictures.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, see `reconstruct`.

        Returns:
            Pixels of shape (B, C, H, W) float32, normalised as the images are.
        """
        patches = self._predict_all(images, mask)
        if self.norm_pix:
            mean, std = patch_statistics(patchify(images, self.patch_stride))
            patches = patches * std + mean
        return unpatchify(patches, self.patch_stride, self.grid_size)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of predicting zeros. With `norm_pix`, zero is the mean of each patch, and the loss is about
        (D - 1) / D for patches of D values.
        """
        return {'loss_of_patch_mean' if self.norm_pix else 'loss_of_zeros': output.target.square().mean()}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of a step. With `norm_pix`, each predicted patch gets its true mean and variance."""
        views = super().views(images, noise)
        if self.norm_pix and not isinstance(images, dict):
            mask = self.make_mask(noise)
            pixels = self.reconstruct_with_target_statistics(images, mask).to(images.dtype)
            views.append(View(WITH_TRUE_STATISTICS, torch.where(self.pixel_mask(mask), pixels, images)))
        return views

    def naflex_refusal(self) -> Optional[str]:
        """Return why the model or an option does not work with NaFlex batches, None if all do."""
        if self.recorder is not None:
            return "decoder 'cross' works on one grid: use 'plain'"
        if isinstance(self.decoder.pos_embed, nn.Parameter):
            return "decoder_pos_embed 'learn' has positions of one grid: use 'sincos'"
        if self.reference_count:
            return 'reference_count is the count of one grid in floats: leave it out'
        return super().naflex_refusal()

    def make_naflex_mask(self, noise: torch.Tensor, batch: NaFlexBatch) -> torch.Tensor:
        """Make the masks (B, N) bool of a NaFlex batch. The mask units with the smallest noise stay visible."""
        batch = self.read_naflex(batch) if isinstance(batch, dict) else batch
        unit = self.mask_unit[0] // self.patch_stride[0], self.mask_unit[1] // self.patch_stride[1]
        return smallest_units(noise, batch, unit, self.mask_ratio, of_masked=False)

    def drawn_naflex_mask(self, noise: torch.Tensor, batch: NaFlexBatch) -> NaFlexMask:
        """Make the mask for `predict_naflex` from noise (B, N).

        The host waits for the device if mask units are larger than a patch, since units at the border are smaller.
        """
        mask = self.make_naflex_mask(noise, batch)
        if tuple(self.mask_unit) != tuple(self.patch_stride):
            return split_naflex_mask(mask, batch.valid)
        most_masked = share_masked(noise.shape[1], self.mask_ratio)  # of an image without padding
        return split_naflex_mask(mask, batch.valid, noise.shape[1] - most_masked, most_masked)

    def predict_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict the masked patches (B, M, D)."""
        return full_precision(self.decoder_pred(gather_patches(self._decode_naflex(batch, mask), mask.masked)))

    def naflex_target(self, batch: NaFlexBatch, mask: NaFlexMask) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return the masked patches (B, M, D), normalised if `norm_pix` is set, and those (B, M) that count."""
        target = full_precision(gather_patches(batch.patches, mask.masked))
        return normalize_patches(target) if self.norm_pix else target, mask.masked_valid

    def compare_patches(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of each patch (B, M)."""
        return F.mse_loss(prediction, target, reduction='none').mean(dim=-1)

    def reconstruct_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict all patches (B, N, D) from the visible ones, normalised if `norm_pix` is set."""
        return full_precision(self.decoder_pred(self._decode_naflex(batch, mask)))

    def _decode_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Encode the visible patches, then decode all patches to tokens (B, N, decoder width)."""
        tokens = self.decoder_embed(encode_visible_naflex(self.backbone, batch, mask))
        tokens = scatter_patches(tokens, mask.visible, batch.valid.shape[1], self.num_prefix_tokens)
        keys = attention_mask(batch.valid, self.num_prefix_tokens, tokens.dtype)
        return self.decoder(tokens, mask=mask.patches, coord=batch.coord, attn_mask=keys)[:, self.num_prefix_tokens:]

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape of the noise for the masks of a batch: (B, mask units), or more values with 'block'.

        With a `predict_ratio` below 1 there is a value for each patch at the end. For random masks of single patches
        these are the values of the units: the patches with the largest noise are predicted, as in CrossMAE.
        """
        size = block_noise_size(self.unit_grid) if self.masking == 'block' else self.num_units
        chooses = self.num_predicted < self.num_patches - self.num_visible
        has_own_noise = self.masking == 'random' and self.num_units == self.num_patches
        return batch_size, size + self.num_patches if chooses and not has_own_noise else size

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        return super().no_weight_decay() | {'decoder.pos_embed'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model and the decoder."""
        super().set_grad_checkpointing(enable)
        self.decoder.set_grad_checkpointing(enable)

    def _predict_all(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self._check_images(images)
        mask = self._split(self._check_mask(mask, images))
        images = self.blank(images, mask)
        if self.recorder is None:
            decoded = self._decode(images, mask)
        else:
            decoded = self.decoder(self._encode_maps(images, mask))
        return full_precision(self.decoder_pred(decoded))

    def _encode_maps(self, images: torch.Tensor, mask: 'MAEMask') -> List[torch.Tensor]:
        """Encode the visible patches, and return the outputs (B, P + K, width) of the blocks that are mixed."""
        features, outputs = self.recorder.record(lambda: self.encode_visible(images, mask.visible, self.grid_size))
        return [features] if self.mixed_blocks is None else [outputs[number] for number in self.mixed_blocks]

    def _decode(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Encode the visible patches, then decode all patches to tokens (B, N, decoder width)."""
        tokens = self.decoder_embed(self.encode_visible(images, mask.visible, self.grid_size))
        tokens = scatter_patches(tokens, mask.visible, self.num_patches, self.num_prefix_tokens)
        return self.decoder(tokens, mask=mask.patches.flatten(1))[:, self.num_prefix_tokens:]

    def _split(self, mask: torch.Tensor, num_visible: Optional[int] = None) -> 'MAEMask':
        num_visible = self._count_visible(mask) if num_visible is None else num_visible
        return MAEMask(mask, *split_mask(mask.flatten(1), num_visible))
