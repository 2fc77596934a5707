""" MAE

Encodes the visible patches of an image only, and predicts the pixels of the masked ones with a small transformer.

Paper: `Masked Autoencoders Are Scalable Vision Learners`
    - https://arxiv.org/abs/2111.06377

The formulas are those of facebookresearch/mae, `models_mae.py`.

Shape letters: B batch, C image channels, H x W pixels, h x w patches, N = h * w, of them K visible and M masked,
P prefix tokens, D pixels times channels of a patch.
"""
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.models._embed_stages import gather_patches

from .backbone import encode_visible, num_prefix_tokens, remove_unused
from .decoder import MaskedDecoder, init_xavier
from .factory import register_mim
from .lean import decode_masked, embed_visible, embeds_patches, select_patches
from .masking import block_mask, block_noise_size, random_mask, scatter_patches, split_mask, visible_count
from .meta_run import dry_run_visible
from .method import MIMMethod
from .output import MIMOutput, View
from .targets import normalize_patches, patch_statistics, patchify, unpatchify

__all__ = ['MAE']


@register_mim('mae')
class MAE(MIMMethod):
    """ Masked autoencoder on any model that can drop tokens.

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

    def forward(
            self,
            images: torch.Tensor,
            mask: Optional[torch.Tensor] = None,
            noise: Optional[torch.Tensor] = None,
            generator: Optional[torch.Generator] = None,
    ) -> MIMOutput:
        """ Mask images, predict the masked patches, compare.

        Without a mask one is made of noise, without noise that is drawn from the generator.

        Args:
            images: Normalised images of shape (B, C, H, W).
            mask: Masked patches, bool of shape (B, h, w) or (B, h * w), True is masked. As many in each sample, which
                is read from the device.
            noise: Noise as `noise_shape` says, the patches of smallest noise stay visible.
            generator: Generator on the device of the images, the default one if None.

        Returns:
            Prediction and target are those of the masked patches in row-major order, of shape (B, M, D), each patch
            flattened in the order (row, column, channel).

        Raises:
            ValueError: An argument of wrong shape or type, or a mask with more patches in one sample than in another.
        """
        self._check_built_size(images)
        self._check_one_source(mask, noise, generator)
        if mask is None:
            noise = self.get_noise(self.noise_shape(len(images)), images, noise, generator)
            mask, num_visible = self._make_mask(noise), self.num_visible
        else:
            mask = self._check_mask(mask, images)
            num_visible = self._count_visible(mask)
            if num_visible == self.num_patches:
                raise ValueError('mask masks no patch, there is nothing to predict.')
        visible, masked = split_mask(mask.flatten(1), num_visible)
        patches = patchify(images, self.patch_stride)
        if self.lean:
            decoded = self._decode_masked(images, patches, mask, visible, masked)
        else:
            decoded = gather_patches(self._decode(images, mask, visible), masked)
        prediction = self.decoder_pred(decoded).float()
        target = select_patches(patches, masked).float()
        if self.norm_pix:
            target = normalize_patches(target)
        # as many patches are masked in each sample: the mean over them is the reference's sum over the mask by its sum
        loss = F.mse_loss(prediction, target, reduction='none').mean(dim=-1).mean()
        return MIMOutput(loss, prediction, target, mask)

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ Predict all patches of images from the visible ones, the raw prediction.

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
        """ Predict all patches and give each the true mean and variance of its pixels, for pictures alone.

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
        """ The loss of predicting zeros: with `norm_pix` the mean of each patch, (D - 1) / D for D values.
        """
        return {'loss_of_patch_mean' if self.norm_pix else 'loss_of_zeros': output.target.square().mean()}

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """ What there is to see of a step. With `norm_pix`, predictions are no pictures, and labelled as what they are.
        """
        views = super().views(images, noise)
        if self.norm_pix:
            mask = self._make_mask(noise)
            hole = self.pixel_mask(mask)
            views += [
                View('prediction, patches normalised', self.reconstruct(images, mask), ~hole),
                View('visible + prediction with true mean and variance (leaks)', torch.where(
                    hole, self.reconstruct_with_target_statistics(images, mask).to(images.dtype), images)),
            ]
        return views

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """ Shape (B, N), and more values for blocks, of the noise that makes the masks of a batch.
        """
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

    def _make_mask(self, noise: torch.Tensor) -> torch.Tensor:
        if self.masking == 'block':
            mask = block_mask(noise, self.grid_size, self.num_patches - self.num_visible)
        else:
            mask = ~random_mask(noise, self.num_visible)
        return mask.unflatten(1, self.grid_size)

    def _predict_all(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self._check_built_size(images)
        mask = self._check_mask(mask, images)
        visible, _ = split_mask(mask.flatten(1), self._count_visible(mask))
        return self.decoder_pred(self._decode(images, mask, visible)).float()

    def _decode(self, images: torch.Tensor, mask: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """ Encode the visible patches, decode all of them, (B, N, width of the decoder).
        """
        features = encode_visible(self.backbone, images, self.pixel_mask(mask), visible)
        tokens = scatter_patches(self.decoder_embed(features), visible, self.num_patches, self.num_prefix_tokens)
        return self.decoder(tokens, mask=mask.flatten(1))[:, self.num_prefix_tokens:]

    def _decode_masked(
            self,
            images: torch.Tensor,
            patches: torch.Tensor,
            mask: torch.Tensor,
            visible: torch.Tensor,
            masked: torch.Tensor,
    ) -> torch.Tensor:
        """ What `_decode` makes of the masked patches (B, M, width of the decoder), by less work.
        """
        if embeds_patches(self.backbone):
            tokens = embed_visible(self.backbone, patches, visible, self.grid_size)
            features = self.backbone.forward_stages(tokens)
        else:
            features = encode_visible(self.backbone, images, self.pixel_mask(mask), visible)
        return decode_masked(self.decoder, self.decoder_embed(features), visible, masked)

    def _count_visible(self, mask: torch.Tensor) -> int:
        """ Number of visible patches of a caller's mask, which the host has to know.
        """
        counts = (~mask).flatten(1).sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts or counts[0] == 0:
            raise ValueError(
                f'mask must leave as many patches visible in each sample, at least one, got '
                f'{", ".join(str(count) for count in sorted(set(counts)))}.')
        return counts[0]
