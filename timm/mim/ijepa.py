"""I-JEPA: predict the features of target blocks from a context block.

The target features are those that a moving average of the encoder computes from the whole image.

Paper: `Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture`
    - https://arxiv.org/abs/2301.08243

The formulas are those of facebookresearch/ijepa, `src/train.py`, `src/models/vision_transformer.py` (predictor) and
`src/masks/multiblock.py` (masks).

Shape letters: B batch, h x w grid of patches, N = h * w patches, K patches in the context, T target blocks of M patches
each, C width of the encoder, D width of the predictor.
"""
import math
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import trunc_normal_
from timm.models._embed_stages import gather_patches

from .backbone import default_num_heads, num_prefix_tokens, remove_unused, to_pair
from .decoder import MaskedDecoder
from .errors import MIMUnsupportedError
from .extraction import VisibleExtraction
from .factory import register_mim
from .fast_path import decode_masked
from .masking import scatter_patches, unit_grid, unit_patches
from .meta_run import dry_run, dry_run_visible
from .multi_block import MultiBlockMasks, MultiBlockSampler, OfficialMultiBlockSampler
from .output import MIMOutput, View
from .targets import full_precision
from .teacher import EMATeacherMethod, check_momentum, variety

__all__ = ['IJEPA']

_SAMPLERS = dict(unbiased=MultiBlockSampler, official=OfficialMultiBlockSampler)


@register_mim('ijepa')
class IJEPA(VisibleExtraction, EMATeacherMethod):
    """I-JEPA on any model that can drop tokens.

    `backbone` is the context encoder. The target encoder is its moving average; call
    `method.update_target(step / num_steps)` after each optimizer step to update it.

    The predictor gets patch tokens only, no prefix tokens (class, register, distillation) of the encoder; the encoder
    of the reference has none. The loss may rise during training, because the targets become more diverse. Watch
    `target_std` and `target_rank` in the `logs` of the output: a fall of either means that the features collapse.

    A mask consists of indices of patches: the context (B, K) and the targets (B, T, M), see `MultiBlockMasks`.
    Prediction and target are features of the target blocks of shape (B, T, M, C). In the mask of the output, True means
    that a patch is not part of the context.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        predictor_dim: Width of the predictor.
        predictor_depth: Number of blocks of the predictor; the paper uses 6 for ViT-B, 12 for larger models.
        predictor_heads: Number of attention heads of the predictor. If None, the number of the model's first block (12
            if it has no `num_heads`), reduced until it divides the width.
        predictor_pos_embed: Position embedding of the predictor, 'sincos' or 'learn'.
        sampler: Sampler of the masks, 'unbiased' or 'official', see `timm.mim.multi_block`.
        mask_unit: Size of a mask unit in pixels, one number or (height, width): a multiple of the patch that divides
            the image. Context and targets consist of whole units. A single patch if None.
        num_targets: Number of target blocks.
        target_scale: Smallest and largest area of a target block, as a share of the image.
        target_aspect: Smallest and largest aspect ratio (height divided by width) of a target block.
        context_scale: Smallest and largest area of the context block, as a share of the image.
        momentum: Momentum of the target encoder at the beginning and at the end of training.

    Raises:
        MIMUnsupportedError: The model does not implement the protocol, cannot drop tokens, or has patch dropout.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    protocol = ('keep_tokens', 'features_to_map')
    mask_grid = 'keep_grid'
    works = (
        'list_mim_models(\'ijepa\') lists the models that work, vit_base_patch16_224 for example; SimMIM also works '
        'with models that cannot drop tokens')
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
            mask_unit: Optional[Any] = None,
            num_targets: int = 4,
            target_scale: Tuple[float, float] = (0.15, 0.2),
            target_aspect: Tuple[float, float] = (0.75, 1.5),
            context_scale: Tuple[float, float] = (0.85, 1.0),
            momentum: Tuple[float, float] = (0.996, 1.0),
    ) -> None:
        super().__init__(backbone, img_size)
        if sampler not in _SAMPLERS:
            raise ValueError(f"sampler must be 'unbiased' or 'official', got {sampler!r}.")
        check_momentum(momentum)
        self.grid_size = self._patch_grid(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.num_prefix_tokens = num_prefix_tokens(backbone)
        self.mask_unit = self.patch_stride if mask_unit is None else to_pair(mask_unit, 'mask_unit')
        self.unit_grid = unit_grid(self.img_size, self.mask_unit, self.patch_stride)

        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        mask_sampler = _SAMPLERS[sampler](
            self.unit_grid, num_targets, target_scale, target_aspect, context_scale, device=weight.device)
        predictor = MaskedDecoder(
            self.grid_size,
            predictor_dim,
            predictor_depth,
            default_num_heads(backbone, predictor_dim) if predictor_heads is None else predictor_heads,
            pos_embed=predictor_pos_embed,
            **dd,
        )
        tokens = dry_run_visible(backbone, self.in_chans, self.img_size, 1)
        features = dry_run(backbone, self.in_chans, self.img_size)
        if features.stride != self.patch_stride:
            raise MIMUnsupportedError(
                f'{type(backbone).__name__} returns features of stride {features.stride}; I-JEPA needs the stride of '
                f'its patches, {self.patch_stride}.')
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
            images: Images of shape (B, C, H, W) whose pixels outside the context are 0.
            mask: Context and targets.

        Returns:
            Features of shape (B, T, M, C).
        """
        context = self.encode_visible(images, mask.context, self.grid_size)
        predict = self._predict_masked if self.fast_path else self._predict
        return full_precision(predict(context[:, self.num_prefix_tokens:], mask))

    def make_target(self, images: torch.Tensor, mask: MultiBlockMasks) -> torch.Tensor:
        """Compute the features (B, T, M, C) of the target blocks with the target encoder, which gets whole images."""
        target = gather_patches(self.encode_target(images), mask.targets.flatten(1))  # (B, T * M, C)
        return target.unflatten(1, mask.targets.shape[1:])

    def compare(self, prediction: torch.Tensor, target: torch.Tensor, mask: MultiBlockMasks) -> MIMOutput:
        """Compute the smooth L1 loss."""
        loss = F.smooth_l1_loss(prediction, target)
        return MIMOutput(loss, prediction, target, self.hidden_patches(mask), variety(target))

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> MultiBlockMasks:
        """Make context and target blocks; the noise determines their sizes and positions.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Ignored, since the method accepts one image size only.
        """
        masks = self.sampler(noise)
        if self.unit_grid == self.grid_size:
            return masks
        return MultiBlockMasks(*(unit_patches(units, self.unit_grid, self.grid_size) for units in masks))

    def given_mask(self, mask: Tuple[torch.Tensor, torch.Tensor], images: torch.Tensor) -> MultiBlockMasks:
        """Check dtype, shape and device of a caller's context (B, K) and targets (B, T, M).

        The values of the indices are not checked, since reading them would wait for the device.
        """
        return self._check_masks(mask, images)

    def hidden_patches(self, mask: MultiBlockMasks) -> torch.Tensor:
        """Return the patches (B, h, w) bool outside the context, whose pixels the context encoder must not see."""
        unseen = torch.ones(len(mask.context), self.num_patches, dtype=torch.bool, device=mask.context.device)
        return unseen.scatter(1, mask.context, False).unflatten(1, self.grid_size)

    def visible_patches(self, mask: MultiBlockMasks) -> torch.Tensor:
        """Return the indices (B, K) of the patches of the context, the only ones that the context encoder encodes."""
        return mask.context

    @property
    def encoder(self) -> nn.Module:
        """The target encoder, which the paper evaluates."""
        return self.target_encoder

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss of a constant prediction, the mean of all target features."""
        mean = output.target.mean(dim=(0, 1, 2), keepdim=True)
        return dict(loss_of_constant=F.smooth_l1_loss(mean.expand_as(output.target), output.target))

    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of the images, of the context that the encoder sees, and of each target block."""
        masks = self.make_mask(noise)
        views = [View('original', images), View('context', images, self.pixel_mask(self.hidden_patches(masks)))]
        for number, block in enumerate(self.target_mask(masks.targets).unbind(1), start=1):
            views.append(View(f'target {number}', images, ~self.pixel_mask(block)))
        return views

    def target_mask(self, targets: torch.Tensor) -> torch.Tensor:
        """Return masks (B, T, h, w) bool of target blocks given as indices (B, T, M)."""
        mask = torch.zeros(*targets.shape[:2], self.num_patches, dtype=torch.bool, device=targets.device)
        return mask.scatter(2, targets, True).unflatten(2, self.grid_size)

    def naflex_refusal(self) -> Optional[str]:
        """Return why the method does not take NaFlex batches."""
        return (
            'the blocks of I-JEPA have one shape for the whole batch, drawn on one grid, and images of a NaFlex batch '
            'have grids of their own; MAE and SimMIM take them')

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape (B, values per sample) of the noise for the masks of a batch."""
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
        """Predict the features (B, T, M, C) of each target block separately from the context (B, K, C)."""
        batch_size, num_targets, length = masks.targets.shape
        tokens = scatter_patches(self.predictor_embed(context), masks.context, self.num_patches)

        def per_target(x: torch.Tensor) -> torch.Tensor:
            return x.unsqueeze(1).expand(-1, num_targets, *x.shape[1:]).flatten(0, 1)

        targets = masks.targets.flatten(0, 1)  # (B * T, M)
        context_and_target = torch.cat([per_target(masks.context), targets], dim=1)
        decoded = self.predictor(per_target(tokens), idx_keep=context_and_target, idx_mask=targets)
        return self.predictor_proj(decoded[:, -length:]).unflatten(0, (batch_size, num_targets))

    def _predict_masked(self, context: torch.Tensor, masks: MultiBlockMasks) -> torch.Tensor:
        """Compute the same result as `_predict` from the context (B, K, C), with less work."""
        targets = masks.targets.flatten(0, 1)  # (B * T, M)
        decoded = decode_masked(self.predictor, self.predictor_embed(context), masks.context, targets)
        return self.predictor_proj(decoded).unflatten(0, masks.targets.shape[:2])

    def _check_masks(self, masks: Tuple[torch.Tensor, torch.Tensor], images: torch.Tensor) -> MultiBlockMasks:
        """Check dtype, shape and device of a caller's masks."""
        masks = MultiBlockMasks(*masks)
        for name, indices, ndim in (('context', masks.context, 2), ('targets', masks.targets, 3)):
            if indices.dtype != torch.int64 or indices.ndim != ndim or len(indices) != len(images):
                shape = '(B, K)' if ndim == 2 else '(B, T, M)'
                raise ValueError(
                    f'{name} of the mask must be int64 of shape {shape} with B = {len(images)}, got {indices.dtype} of '
                    f'shape {tuple(indices.shape)}.')
            if indices.device != images.device:
                raise ValueError(f'mask must be on the device of the images, {images.device}, got {indices.device}.')
        return masks

    def _init_predictor(self) -> None:
        """Initialise the predictor as the reference does; divide the output weights of block number i by sqrt(2 i)."""
        for module in (self.predictor_embed, self.predictor_proj, *self.predictor.modules()):
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.predictor.mask_token, std=.02)
        with torch.no_grad():
            for depth, block in enumerate(self.predictor.blocks, start=1):
                block.attn.proj.weight.div_(math.sqrt(2. * depth))
                block.mlp.fc2.weight.div_(math.sqrt(2. * depth))
