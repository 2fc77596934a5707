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

from .backbone import encode_visible, num_prefix_tokens, remove_unused
from .decoder import MaskedDecoder, init_xavier
from .extraction import VisibleIntermediates, visible_attention_maps, visible_intermediates
from .factory import register_mim
from .fast_path import decode_masked, embed_visible, embeds_patches, select_patches
from .masking import block_mask, block_noise_size, random_mask, scatter_patches, split_mask, visible_count
from .meta_run import dry_run_visible
from .method import MIMMethod
from .output import WITH_TRUE_STATISTICS, MIMOutput, View
from .targets import full_precision, normalize_patches, patch_statistics, patchify, unpatchify

__all__ = ['MAE']


class MAEMask(NamedTuple):
    """Mask of a batch of images, with the same number of masked patches in each sample.

    Attributes:
        patches: Masked patches of shape (B, h, w) bool, True is masked.
        visible: Indices of the visible patches of shape (B, K).
        masked: Indices of the masked patches of shape (B, M).
    """
    patches: torch.Tensor
    visible: torch.Tensor
    masked: torch.Tensor


@register_mim('mae')
class MAE(MIMMethod):
    """Masked autoencoder on any model that can drop tokens.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with the same number of masked patches in each
    sample. Prediction and target are the masked patches, see `predict`.

    Prefix tokens (class, register, distillation) go through the decoder in front of the patches, with a position
    embedding of zeros, like the class token in the reference; no pixels are predicted for them. A mask covers patches,
    or, in Hiera, mask units of 8 x 8 patches.

    The encoder keeps its own initial weights and position embedding. To start like the reference, give the model fixed
    sine-cosine positions and a Xavier initialisation before you pass it.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of patches to mask, rounded up to whole patches.
        norm_pix: Predict the pixels of each patch normalised by the patch's own mean and variance.
        decoder_dim: Width of the decoder.
        decoder_depth: Number of blocks of the decoder.
        decoder_heads: Number of attention heads of the decoder.
        decoder_pos_embed: Position embedding of the decoder, 'sincos' or 'learn'.
        masking: 'random' masks single patches, 'block' masks rectangular blocks as BEiT does.
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
            norm_pix: bool = True,
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
        self.norm_pix = norm_pix
        self.reconstructs_pixels = not norm_pix
        self.grid_size = self._patch_grid(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.num_visible = visible_count(self.num_patches, mask_ratio, reference_count)
        self.num_prefix_tokens = num_prefix_tokens(backbone)

        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        self.decoder = MaskedDecoder(
            self.grid_size,
            decoder_dim,
            decoder_depth,
            decoder_heads,
            num_prefix_tokens=self.num_prefix_tokens,
            pos_embed=decoder_pos_embed,
            **dd,
        )
        tokens = dry_run_visible(backbone, self.in_chans, self.img_size, self.num_visible)
        remove_unused(backbone, tokens.unused)
        self.decoder_embed = nn.Linear(tokens.channels, decoder_dim, **dd)
        self.decoder_pred = nn.Linear(
            decoder_dim, self.patch_stride[0] * self.patch_stride[1] * self.in_chans, **dd)
        init_xavier(self.decoder_embed)
        init_xavier(self.decoder_pred)

    def predict(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Predict the masked patches.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Mask.

        Returns:
            Masked patches in row-major order of shape (B, M, D), each flattened in the order (row, column, channel).
        """
        if self.fast_path:
            decoded = decode_masked(self.decoder, self._encode(images, mask), mask.visible, mask.masked)
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
            mask = block_mask(noise, self.grid_size, self.num_patches - self.num_visible)
        else:
            mask = ~random_mask(noise, self.num_visible)
        return mask.unflatten(1, self.grid_size)

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> 'MAEMask':
        """Make a mask from noise."""
        return self._split(self.make_mask(noise), self.num_visible)

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

    def forward_intermediates(self, images: torch.Tensor, mask: torch.Tensor) -> VisibleIntermediates:
        """Return the hidden states of the model, which encodes the visible patches only.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches of shape (B, h, w) or (B, h * w) bool, True is masked, the same number in each sample.

        Raises:
            MIMUnsupportedError: The model has no list of blocks.
        """
        mask = self.given_mask(mask, images)
        return visible_intermediates(self.backbone, self.blank(images, mask), mask.visible)

    def attention_maps(self, images: torch.Tensor, mask: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Return the attention maps of the model among prefix tokens and visible patches, in eval mode.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: As for `forward_intermediates`, whose `visible` names the patches of queries and keys.

        Returns:
            Maps after the softmax of shape (B, heads, P + K, P + K), by the names of the modules.

        Raises:
            MIMUnsupportedError: The model has no attention maps.
        """
        mask = self.given_mask(mask, images)
        return visible_attention_maps(self.backbone, self.blank(images, mask), mask.visible)

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of predicting zeros. With `norm_pix`, zero is the mean of each patch, and the loss is about
        (D - 1) / D for patches of D values.
        """
        return {'loss_of_patch_mean' if self.norm_pix else 'loss_of_zeros': output.target.square().mean()}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of a step. With `norm_pix`, each predicted patch gets its true mean and variance."""
        views = super().views(images, noise)
        if self.norm_pix:
            mask = self.make_mask(noise)
            pixels = self.reconstruct_with_target_statistics(images, mask).to(images.dtype)
            views.append(View(WITH_TRUE_STATISTICS, torch.where(self.pixel_mask(mask), pixels, images)))
        return views

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape of the noise for the masks of a batch: (B, N), or more values per sample with 'block'."""
        return batch_size, block_noise_size(self.grid_size) if self.masking == 'block' else self.num_patches

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
        return full_precision(self.decoder_pred(self._decode(self.blank(images, mask), mask)))

    def _encode(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Encode the visible patches as tokens (B, P + K, decoder width)."""
        if self.fast_path and embeds_patches(self.backbone):
            patches = patchify(images, self.patch_stride)
            features = self.backbone.forward_stages(
                embed_visible(self.backbone, patches, mask.visible, self.grid_size))
        else:
            features = encode_visible(self.backbone, images, mask.visible)
        return self.decoder_embed(features)

    def _decode(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Encode the visible patches, then decode all patches to tokens (B, N, decoder width)."""
        tokens = scatter_patches(self._encode(images, mask), mask.visible, self.num_patches, self.num_prefix_tokens)
        return self.decoder(tokens, mask=mask.patches.flatten(1))[:, self.num_prefix_tokens:]

    def _split(self, mask: torch.Tensor, num_visible: Optional[int] = None) -> 'MAEMask':
        num_visible = self._count_visible(mask) if num_visible is None else num_visible
        return MAEMask(mask, *split_mask(mask.flatten(1), num_visible))

    def _count_visible(self, mask: torch.Tensor) -> int:
        """Return the number of visible patches of a caller's mask; this waits for the device."""
        counts = (~mask).flatten(1).sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts or counts[0] == 0:
            raise ValueError(
                f'mask must leave the same number of patches visible in each sample, at least one, got '
                f'{", ".join(str(count) for count in sorted(set(counts)))}.')
        return counts[0]
