"""MAE

Encodes the visible patches of an image only, and predicts the pixels of the masked ones with a small transformer.

Paper: `Masked Autoencoders Are Scalable Vision Learners`
    - https://arxiv.org/abs/2111.06377

The formulas are those of facebookresearch/mae, `models_mae.py`.

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w, of them K visible and M masked,
P prefix tokens, D pixels times channels of a patch.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.models._embed_stages import gather_patches

from .backbone import encode_visible, num_prefix_tokens, remove_unused
from .decoder import MaskedDecoder, init_xavier
from .factory import register_mim
from .fast_path import decode_masked, embed_visible, embeds_patches, select_patches
from .masking import block_mask, block_noise_size, random_mask, scatter_patches, split_mask, visible_count
from .meta_run import dry_run_visible
from .method import MIMMethod
from .output import MIMOutput, View
from .targets import normalize_patches, patch_statistics, patchify, unpatchify

__all__ = ['MAE']


class MAEMask(NamedTuple):
    """Mask of a batch of images, with as many masked patches in each sample.

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

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with as many masked patches in each sample.
    Prediction and target are the masked patches, see `predict`.

    Prefix tokens (class, register, distillation) pass through the decoder in front of the patches, with a position of
    zeros, and no pixels are predicted of them: so does the class token in the reference. What a mask decides on is a
    patch, in Hiera a mask unit of 8 x 8 patches.

    The encoder starts with the weights and positions that it has: the reference's fixed sine-cosine positions and its
    Xavier initialisation of the encoder are a matter of the model.
    """
    protocol = ('keep_tokens',)
    mask_grid = 'keep_grid'
    works = (
        'list_mim_models(\'mae\') names the models that work, vit_base_patch16_224 for example, and SimMIM needs no '
        'model that drops tokens')

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
        """
        Args:
            backbone: Model to train.
            img_size: Image size, one number or (height, width), that of the model if None.
            mask_ratio: Share of patches that is masked, rounded up to whole patches.
            norm_pix: Predict the pixels of each patch normalised by its own mean and variance.
            decoder_dim: Width of the decoder.
            decoder_depth: Number of blocks of the decoder.
            decoder_heads: Number of attention heads of the decoder.
            decoder_pos_embed: Position embedding of the decoder, 'sincos' or 'learn'.
            masking: Mask patches at 'random', or in blocks as BEiT does ('block').
            reference_count: Count patches in floats as the reference does, see `visible_count`.

        Raises:
            MIMUnsupportedError: The model has no protocol, cannot drop tokens, or drops patches by itself.
            ValueError: A value that is not allowed, or an image size that the model does not take.
        """
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
        return self.decoder_pred(decoded).float()

    def make_target(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Cut out the masked patches of images, in the shape of the prediction, normalised with `norm_pix`."""
        target = select_patches(patchify(images, self.patch_stride), mask.masked).float()
        return normalize_patches(target) if self.norm_pix else target

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: 'MAEMask') -> MIMOutput:
        """Compute the mean squared error."""
        # as many patches are masked in each sample: the mean over them is the reference's sum over the mask by its sum
        loss = F.mse_loss(prediction, target, reduction='none').mean(dim=-1).mean()
        return MIMOutput(loss, prediction, target, mask.patches)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make the masked patches (B, h, w) bool of noise: the patches of smallest noise stay visible.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Not used, the method takes images of one size.
        """
        if self.masking == 'block':
            mask = block_mask(noise, self.grid_size, self.num_patches - self.num_visible)
        else:
            mask = ~random_mask(noise, self.num_visible)
        return mask.unflatten(1, self.grid_size)

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> 'MAEMask':
        """Make a mask of noise."""
        return self._split(self.make_mask(noise), self.num_visible)

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> 'MAEMask':
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w).

        As many patches must be masked in each sample. How many is read from the device.
        """
        mask = self._split(self._check_mask(mask, images))
        if mask.masked.shape[1] == 0:
            raise ValueError('mask masks no patch, there is nothing to predict.')
        return mask

    def hidden_patches(self, mask: 'MAEMask') -> torch.Tensor:
        """Patches (B, h, w) bool whose pixels the model must not see."""
        return mask.patches

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all patches of images from the visible ones, the raw prediction.

        With `norm_pix` each patch is predicted without its brightness and contrast: this is no picture, and there is
        no mean and variance to make one of without looking at what was masked.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked. As many in each sample.

        Returns:
            Prediction of shape (B, C, H, W) float32, with `norm_pix` normalised patch by patch.
        """
        return unpatchify(self._predict_all(images, mask), self.patch_stride, self.grid_size)

    def reconstruct_with_target_statistics(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict all patches and give each the true mean and variance of its pixels, for pictures alone.

        Masked patches leak into this: brightness and contrast of every patch are right whatever was predicted. Never
        measure a method with it, and say so on a picture.

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
        """The loss of predicting zeros: with `norm_pix` the mean of each patch, (D - 1) / D for D values."""
        return {'loss_of_patch_mean' if self.norm_pix else 'loss_of_zeros': output.target.square().mean()}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """What there is to see of a step. With `norm_pix`, predictions are no pictures, and labelled as what they are.
        """
        views = super().views(images, noise)
        if self.norm_pix:
            mask = self.make_mask(noise)
            hole = self.pixel_mask(mask)
            views += [
                View('prediction, patches normalised', self.reconstruct(images, mask), ~hole),
                View('visible + prediction with true mean and variance (leaks)', torch.where(
                    hole, self.reconstruct_with_target_statistics(images, mask).to(images.dtype), images)),
            ]
        return views

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Shape (B, N), and more values for blocks, of the noise that makes the masks of a batch."""
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
        return self.decoder_pred(self._decode(self.blank(images, mask), mask)).float()

    def _encode(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Encode the visible patches, (B, P + K, width of the decoder)."""
        if self.fast_path and embeds_patches(self.backbone):
            patches = patchify(images, self.patch_stride)
            features = self.backbone.forward_stages(
                embed_visible(self.backbone, patches, mask.visible, self.grid_size))
        else:
            features = encode_visible(self.backbone, images, mask.visible)
        return self.decoder_embed(features)

    def _decode(self, images: torch.Tensor, mask: 'MAEMask') -> torch.Tensor:
        """Encode the visible patches, decode all of them, (B, N, width of the decoder)."""
        tokens = scatter_patches(self._encode(images, mask), mask.visible, self.num_patches, self.num_prefix_tokens)
        return self.decoder(tokens, mask=mask.patches.flatten(1))[:, self.num_prefix_tokens:]

    def _split(self, mask: torch.Tensor, num_visible: Optional[int] = None) -> 'MAEMask':
        num_visible = self._count_visible(mask) if num_visible is None else num_visible
        return MAEMask(mask, *split_mask(mask.flatten(1), num_visible))

    def _count_visible(self, mask: torch.Tensor) -> int:
        """Number of visible patches of a caller's mask, which the host has to know."""
        counts = (~mask).flatten(1).sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts or counts[0] == 0:
            raise ValueError(
                f'mask must leave as many patches visible in each sample, at least one, got '
                f'{", ".join(str(count) for count in sorted(set(counts)))}.')
        return counts[0]
