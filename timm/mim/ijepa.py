"""I-JEPA

Predicts features of blocks of an image from the rest of it, features that a moving average of the encoder makes of the
whole image.

Paper: `Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture`
    - https://arxiv.org/abs/2301.08243

The formulas are those of facebookresearch/ijepa, `src/train.py`, `src/models/vision_transformer.py` (predictor) and
`src/masks/multiblock.py` (masks).

Shape letters: B batch, h x w patches, N = h * w, of them K in the context, T target blocks of M patches each, C width
of the encoder, D width of the predictor.
"""
import math
from contextlib import nullcontext
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import trunc_normal_
from timm.models._embed_stages import gather_patches

from .backbone import encode_visible, num_prefix_tokens, remove_unused
from .decoder import MaskedDecoder
from .errors import MIMUnsupportedError
from .factory import register_mim
from .fast_path import decode_masked, embed_visible, embeds_patches
from .masking import scatter_patches
from .meta_run import dry_run, dry_run_visible
from .multi_block import MultiBlockMasks, MultiBlockSampler, OfficialMultiBlockSampler
from .output import MIMOutput, View
from .targets import patchify
from .teacher import EMATeacherMethod, check_momentum

__all__ = ['IJEPA']

_SAMPLERS = dict(unbiased=MultiBlockSampler, official=OfficialMultiBlockSampler)


@register_mim('ijepa')
class IJEPA(EMATeacherMethod):
    """I-JEPA on any model that can drop tokens.

    `backbone` is the context encoder. The target encoder is its moving average, which follows by
    `method.update_target(step / num_steps)` after each step of the optimizer.

    The encoders keep their prefix tokens (class, register, distillation) to themselves: the predictor sees the patches
    only, as in the reference, whose encoder has none. A loss that rises is normal, since targets gain in variety; what
    should not fall is `target_std` and `target_rank` in the `logs` of the output.

    A mask is the context (B, K) and the targets (B, T, M), indices of patches, see `MultiBlockMasks`. Prediction and
    target are features of the target blocks of shape (B, T, M, C), the mask of the output is True where a patch is not
    part of the context.
    """
    protocol = ('keep_tokens', 'features_to_map')
    mask_grid = 'keep_grid'
    works = (
        'list_mim_models(\'ijepa\') names the models that work, vit_base_patch16_224 for example, and SimMIM needs no '
        'model that drops tokens')
    reconstructs_pixels = False
    losses_compare = False

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            predictor_dim: int = 384,
            predictor_depth: int = 6,
            predictor_heads: Optional[int] = None,
            predictor_pos_embed: str = 'sincos',
            sampler: str = 'unbiased',
            num_targets: int = 4,
            target_scale: Tuple[float, float] = (0.15, 0.2),
            target_aspect: Tuple[float, float] = (0.75, 1.5),
            context_scale: Tuple[float, float] = (0.85, 1.0),
            momentum: Tuple[float, float] = (0.996, 1.0),
    ) -> None:
        """
        Args:
            backbone: Model to train.
            img_size: Image size, one number or (height, width), that of the model if None.
            predictor_dim: Width of the predictor.
            predictor_depth: Number of blocks of the predictor, 6 for a ViT-B, 12 for larger ones in the paper.
            predictor_heads: Number of attention heads of the predictor. If None as many as the model's first block has
                (12 where it does not tell), or fewer where they do not divide the width.
            predictor_pos_embed: Position embedding of the predictor, 'sincos' or 'learn'.
            sampler: Sampler of the masks, 'unbiased' or 'official', see `timm.mim.multi_block`.
            num_targets: Number of target blocks.
            target_scale: Smallest and largest area of a target block in images.
            target_aspect: Smallest and largest height of a target block in widths.
            context_scale: Smallest and largest area of the context block in images.
            momentum: Momentum of the target encoder at the beginning and at the end of training.

        Raises:
            MIMUnsupportedError: The model has no protocol, cannot drop tokens, or drops patches by itself.
            ValueError: A value that is not allowed, or an image size that the model does not take.
        """
        super().__init__(backbone, img_size)
        if sampler not in _SAMPLERS:
            raise ValueError(f"sampler must be 'unbiased' or 'official', got {sampler!r}.")
        check_momentum(momentum)
        self.grid_size = self._patch_grid(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.num_prefix_tokens = num_prefix_tokens(backbone)

        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        mask_sampler = _SAMPLERS[sampler](
            self.grid_size, num_targets, target_scale, target_aspect, context_scale, device=weight.device)
        predictor = MaskedDecoder(
            self.grid_size,
            predictor_dim,
            predictor_depth,
            _num_heads(backbone, predictor_dim) if predictor_heads is None else predictor_heads,
            pos_embed=predictor_pos_embed,
            **dd,
        )
        tokens = dry_run_visible(backbone, self.in_chans, self.img_size, 1)
        features = dry_run(backbone, self.in_chans, self.img_size)
        if features.stride != self.patch_stride:
            raise MIMUnsupportedError(
                f'{type(backbone).__name__} gives features of stride {features.stride}, not of its patches.')
        remove_unused(backbone, sorted({*tokens.unused, *features.unused}))

        self.add_target_encoder(momentum)
        self.sampler = mask_sampler
        self.predictor_embed = nn.Linear(tokens.channels, predictor_dim, **dd)
        self.predictor = predictor
        self.predictor_proj = nn.Linear(predictor_dim, tokens.channels, **dd)
        self._init_predictor()

    def predict(self, images: torch.Tensor, mask: MultiBlockMasks) -> torch.Tensor:
        """Predict the features of the target blocks from those of the context.

        Args:
            images: Images of shape (B, C, H, W) whose pixels outside of the context are 0.
            mask: Context and targets.

        Returns:
            Features of shape (B, T, M, C).
        """
        if self.fast_path and embeds_patches(self.backbone):
            patches = patchify(images, self.patch_stride)
            context = self.backbone.forward_stages(
                embed_visible(self.backbone, patches, mask.context, self.grid_size))
        else:
            context = encode_visible(self.backbone, images, mask.context)
        predict = self._predict_masked if self.fast_path else self._predict
        return predict(context[:, self.num_prefix_tokens:], mask).float()

    def make_target(self, images: torch.Tensor, mask: MultiBlockMasks) -> torch.Tensor:
        """Compute the features (B, T, M, C) that the target encoder makes of whole images, in the target blocks."""
        target = gather_patches(self.encode_target(images), mask.targets.flatten(1))  # (B, T * M, C)
        return target.unflatten(1, mask.targets.shape[1:])

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: MultiBlockMasks) -> MIMOutput:
        """Compute the smooth L1 loss."""
        loss = F.smooth_l1_loss(prediction, target)
        return MIMOutput(loss, prediction, target, self.hidden_patches(mask), _variety(target))

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> MultiBlockMasks:
        """Make context and target blocks of noise, which decides sizes and places of the blocks.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Not used, the method takes images of one size.
        """
        return self.sampler(noise)

    def given_mask(self, mask: Tuple[torch.Tensor, torch.Tensor], images: torch.Tensor) -> MultiBlockMasks:
        """Check a caller's masks, context (B, K) and targets (B, T, M), but for the values of the indices.

        Those are on the device, and reading them would wait for it.
        """
        return self._check_masks(mask, images)

    def hidden_patches(self, mask: MultiBlockMasks) -> torch.Tensor:
        """Patches (B, h, w) bool that are not part of the context: the context encoder must not see their pixels."""
        unseen = torch.ones(len(mask.context), self.num_patches, dtype=torch.bool, device=mask.context.device)
        return unseen.scatter(1, mask.context, False).unflatten(1, self.grid_size)

    @property
    def encoder(self) -> nn.Module:
        """The target encoder, which the paper evaluates."""
        return self.target_encoder

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """The loss of predicting the same features everywhere, the mean of the targets."""
        mean = output.target.mean(dim=(0, 1, 2), keepdim=True)
        return dict(loss_of_constant=F.smooth_l1_loss(mean.expand_as(output.target), output.target))

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """The context, which the encoder sees, and the target blocks, whose features are predicted."""
        masks = self.make_mask(noise)
        views = [View('original', images), View('context', images, self.pixel_mask(self.hidden_patches(masks)))]
        for number, block in enumerate(self.target_mask(masks.targets).unbind(1), start=1):
            views.append(View(f'target {number}', images, ~self.pixel_mask(block)))
        return views

    def target_mask(self, targets: torch.Tensor) -> torch.Tensor:
        """The patches of target blocks (B, T, M), as masks (B, T, h, w) bool."""
        mask = torch.zeros(*targets.shape[:2], self.num_patches, dtype=torch.bool, device=targets.device)
        return mask.scatter(2, targets, True).unflatten(2, self.grid_size)

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Shape (B, values per sample) of the noise that makes the masks of a batch."""
        return batch_size, self.sampler.noise_size

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Set of parameters that should not use weight decay."""
        return super().no_weight_decay() | {'predictor.pos_embed'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model and the predictor."""
        super().set_grad_checkpointing(enable)
        self.predictor.set_grad_checkpointing(enable)

    def _predict(self, context: torch.Tensor, masks: MultiBlockMasks) -> torch.Tensor:
        """Predict the features (B, T, M, C) of each target block by itself, from the context (B, K, C)."""
        batch_size, num_targets, length = masks.targets.shape
        tokens = scatter_patches(self.predictor_embed(context), masks.context, self.num_patches)

        def per_target(x: torch.Tensor) -> torch.Tensor:
            return x.unsqueeze(1).expand(-1, num_targets, *x.shape[1:]).flatten(0, 1)

        targets = masks.targets.flatten(0, 1)  # (B * T, M)
        context_and_target = torch.cat([per_target(masks.context), targets], dim=1)
        decoded = self.predictor(per_target(tokens), idx_keep=context_and_target, idx_mask=targets)
        return self.predictor_proj(decoded[:, -length:]).unflatten(0, (batch_size, num_targets))

    def _predict_masked(self, context: torch.Tensor, masks: MultiBlockMasks) -> torch.Tensor:
        """What `_predict` makes of the context (B, K, C), by less work."""
        targets = masks.targets.flatten(0, 1)  # (B * T, M)
        decoded = decode_masked(self.predictor, self.predictor_embed(context), masks.context, targets)
        return self.predictor_proj(decoded).unflatten(0, masks.targets.shape[:2])

    def _check_masks(self, masks: Tuple[torch.Tensor, torch.Tensor], images: torch.Tensor) -> MultiBlockMasks:
        """Check a caller's masks, but for the values of the indices, which are on the device."""
        masks = MultiBlockMasks(*masks)
        for name, indices, ndim in (('context', masks.context, 2), ('targets', masks.targets, 3)):
            if indices.dtype != torch.int64 or indices.ndim != ndim or len(indices) != len(images):
                shape = '(B, K)' if ndim == 2 else '(B, T, M)'
                raise ValueError(
                    f'{name} of the mask must be int64 of shape {shape} with B = {len(images)}, got {indices.dtype} of '
                    f'shape {tuple(indices.shape)}.')
            if indices.device != images.device:
                raise ValueError(f'mask must be on {images.device} as the images are, it is on {indices.device}.')
        return masks

    def _init_predictor(self) -> None:
        """Initialise the predictor as the reference does, the output of each block weighted down with its depth."""
        for module in (self.predictor_embed, self.predictor_proj, *self.predictor.modules()):
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.predictor.mask_token, std=.02)
        with torch.no_grad():
            for depth, block in enumerate(self.predictor.blocks, start=1):
                block.attn.proj.weight.div_(math.sqrt(2. * depth))
                block.mlp.fc2.weight.div_(math.sqrt(2. * depth))


def _num_heads(backbone: nn.Module, width: int) -> int:
    """Number of attention heads of the first block, 12 where no block tells, or the next lower that divides a width."""
    numbers = (getattr(module, 'num_heads', None) for module in backbone.modules())
    num_heads = next((number for number in numbers if isinstance(number, int)), 12)
    return next(heads for heads in range(num_heads, 0, -1) if width % heads == 0)


def _variety(features: torch.Tensor) -> Dict[str, torch.Tensor]:
    """How much target features differ, without a decomposition for which the host would have to wait.

    `target_std` is the standard deviation over all tokens, averaged over channels; features that are all the same have
    0. `target_rank` is the effective number of dimensions that they vary in, the squared sum of the eigenvalues of
    their covariance by the sum of the squares; it is 1 if they vary along a line.
    """
    # autocast does not know the meta device
    with nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False):
        tokens = features.flatten(0, -2)
        centered = tokens - tokens.mean(dim=0)
        covariance = centered.T @ centered / len(tokens)
        variances = covariance.diagonal()
        rank = variances.sum().square() / covariance.square().sum().clamp(min=1e-12)
        return dict(target_std=variances.sqrt().mean(), target_rank=rank)
