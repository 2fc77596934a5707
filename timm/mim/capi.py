"""CAPI: predict to which cluster each masked patch belongs, for clusters of a moving average's features.

Paper: `Cluster and Predict Latent Patches for Improved Masked Image Modeling`
    - https://arxiv.org/abs/2502.08769

The formulas are those of facebookresearch/capi, `train_capi.py`, `model.py` and `data.py`.

Shape letters: B batch, h x w grid of patches, N = h * w patches, K visible patches, M predicted patches, P prefix
tokens, D width of the encoder, C clusters.
"""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from .backbone import default_num_heads, num_prefix_tokens, remove_unused
from .cross_decoder import RotaryCrossDecoder
from .errors import MIMUnsupportedError
from .extraction import VisibleExtraction
from .factory import register_mim
from .inverse_block import inverse_block_mask, inverse_block_noise_size
from .masking import masked_count, share_count, split_mask
from .meta_run import dry_run, dry_run_visible
from .output import MIMOutput, View
from .targets import full_precision
from .teacher import EMATeacherMethod, check_momentum, variety

__all__ = ['CAPI', 'sinkhorn_knopp']


class CAPIMask(NamedTuple):
    """Mask of a batch of images, with the same number of masked patches in each sample.

    Attributes:
        patches: Masked patches of shape (B, h, w) bool, True is masked.
        visible: Indices of the visible patches of shape (B, K).
        predicted: Indices of the masked patches to predict of shape (B, M).
    """
    patches: torch.Tensor
    visible: torch.Tensor
    predicted: torch.Tensor


class CAPITarget(NamedTuple):
    """What the moving average makes of whole images.

    Attributes:
        assignments: Shares of the clusters in each predicted patch of shape (B, M, C), which sum to 1.
        clustering_loss: Loss of the clustering.
        logs: Scalars that show a collapse.
    """
    assignments: torch.Tensor
    clustering_loss: torch.Tensor
    logs: Dict[str, torch.Tensor]


@torch.no_grad()
def sinkhorn_knopp(
        logits: torch.Tensor,
        iterations: int = 3,
        distributed: bool = False,
        eps: float = 1e-8,
) -> torch.Tensor:
    """Assign patches to clusters such that, at each position, all clusters get an equal share of the batch.

    Each iteration divides by the sum over images, then by the sum over clusters. Positions are balanced one by one,
    since clusters could otherwise stand for positions.

    Args:
        logits: Logits divided by the temperature, of shape (B, N, C).
        iterations: Number of iterations.
        distributed: Balance over the images of all processes, which must call this together.
        eps: Small constant in the denominators.

    Returns:
        Shares of shape (B, N, C). Those of a patch sum to 1.
    """
    distributed = distributed and dist.is_initialized() and dist.get_world_size() > 1
    shift = logits.amax(dim=0, keepdim=True)  # (1, N, C); it cancels in the first division
    if distributed:
        dist.all_reduce(shift, dist.ReduceOp.MAX)
    shares = torch.exp(logits - shift)
    for _ in range(iterations):
        of_cluster = shares.sum(dim=0, keepdim=True)
        if distributed:
            dist.all_reduce(of_cluster)
        shares = shares / (of_cluster + eps)
        shares = shares / (shares.sum(dim=2, keepdim=True) + eps)
    return shares


@register_mim('capi')
class CAPI(VisibleExtraction, EMATeacherMethod):
    """CAPI on any model that can drop tokens, those with rotary positions included.

    `backbone` is the student, which encodes the visible patches. The teacher is its moving average, which encodes whole
    images; call `method.update_target(step / num_steps)` after each optimizer step. A linear layer, the clustering,
    assigns the teacher's features to clusters, balanced over the images of the batch at each position; it learns to
    predict these assignments itself, in `clustering_loss`, with an optimizer of its own (`own_optimizers`). The student
    learns to predict those of masked patches, in `prediction_loss`. The loss is the sum of the two, whose gradients
    reach separate parameters.

    A mask is bool of shape (B, h, w) or (B, h * w), True is masked, with the same number of masked patches in each
    sample. Masks made from noise leave a block visible, which may wrap around the border. Prediction are logits, target
    are assignments of the predicted patches, both of shape (B, M, C).

    The loss falls when clusters become useless, too: watch the `logs` of the output. `assignment_entropy` is the mean
    entropy of the assignment of a patch, and is 1 if features do not differ between images; `cluster_entropy` is that
    of all assignments together, and falls if few clusters are used; both are divided by the entropy of equal shares.
    `target_std` and `target_rank` are the standard deviation and the number of dimensions of the teacher's features.

    What differs from the reference: the encoder is the model as it is, with its own norms and positions; the rotary
    embedding of the predictor is timm's, while the angles of the reference are arranged such that it is no rotation,
    and prefix tokens are not rotated; the patch embedding has the learning rate of the other layers.

    Args:
        backbone: Model to train.
        img_size: Image size, one number or (height, width). The size of the model if None.
        mask_ratio: Share of patches to mask, rounded down to whole patches.
        predict_ratio: Share of the masked patches to predict, chosen at random, to the nearest number of whole patches.
            All are predicted if the caller of `forward` gives a mask.
        num_clusters: Number of clusters.
        predictor_dim: Width of the predictor. The width of the encoder if None.
        predictor_depth: Number of blocks of the predictor.
        predictor_heads: Number of attention heads of the predictor. If None, the number of the model's first block (12
            if it has no `num_heads`), reduced until the width of a head is a multiple of 4.
        mask_aspect: Smallest and largest aspect ratio (height divided by width) of the visible block.
        mask_roll: Shift the visible block by a random offset, around the border.
        teacher_temperature: Temperature of the teacher's logits before they are balanced.
        student_temperature: Temperature of the predicted logits.
        sinkhorn_iterations: Number of iterations that balance the assignments.
        momentum: Momentum of the teacher after the warm-up, and at the end of training.
        momentum_warmup: Share of the training in which the momentum falls from 1 to its first value.
        clustering_lr_scale: Learning rate of the clustering divided by that of the rest.
        clustering_weight_decay: Weight decay of the clustering.

    Raises:
        MIMUnsupportedError: The model does not implement the protocol, cannot drop tokens, or has patch dropout.
        ValueError: A value is not allowed, or the model does not accept the image size.
    """
    protocol = ('keep_tokens', 'features_to_map')
    mask_grid = 'keep_grid'
    works = (
        'list_mim_models(\'capi\') lists the models that work, vit_base_patch16_224 for example; SimMIM also works '
        'with models that cannot drop tokens')
    reconstructs_pixels = False
    losses_compare = False

    def __init__(
            self,
            backbone: nn.Module,
            img_size: Optional[Any] = None,
            mask_ratio: float = 0.65,
            predict_ratio: float = 0.05,
            num_clusters: int = 16384,
            predictor_dim: Optional[int] = None,
            predictor_depth: int = 12,
            predictor_heads: Optional[int] = None,
            mask_aspect: Tuple[float, float] = (0.5, 2.0),
            mask_roll: bool = True,
            teacher_temperature: float = 0.06,
            student_temperature: float = 0.12,
            sinkhorn_iterations: int = 3,
            momentum: Tuple[float, float] = (0.999, 0.9999),
            momentum_warmup: float = 0.1,
            clustering_lr_scale: float = 0.5,
            clustering_weight_decay: float = 0.01,
    ) -> None:
        super().__init__(backbone, img_size)
        check_momentum(momentum)
        self._check_numbers(
            num_clusters=num_clusters, teacher_temperature=teacher_temperature,
            student_temperature=student_temperature, sinkhorn_iterations=sinkhorn_iterations,
            clustering_lr_scale=clustering_lr_scale)
        if not 0 <= momentum_warmup < 1:
            raise ValueError(f'momentum_warmup must be a share from 0 to below 1, got {momentum_warmup!r}.')
        if not (len(mask_aspect) == 2 and 0 < mask_aspect[0] <= mask_aspect[1]):
            raise ValueError(f'mask_aspect must be a pair of positive numbers, smallest first, got {mask_aspect!r}.')
        self.grid_size = self._patch_grid(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.mask_ratio = mask_ratio
        self.num_visible = self.num_patches - masked_count(self.num_patches, mask_ratio, round_down=True)
        self.num_predicted = share_count(self.num_patches - self.num_visible, predict_ratio, 'predict_ratio')
        self.num_prefix_tokens = num_prefix_tokens(backbone)
        self.num_clusters = num_clusters
        self.mask_aspect, self.mask_roll = tuple(mask_aspect), mask_roll
        self.teacher_temperature, self.student_temperature = teacher_temperature, student_temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.momentum_warmup = momentum_warmup
        self.clustering_lr_scale, self.clustering_weight_decay = clustering_lr_scale, clustering_weight_decay

        tokens = dry_run_visible(backbone, self.in_chans, self.img_size, self.num_visible)
        features = dry_run(backbone, self.in_chans, self.img_size)
        if features.stride != self.patch_stride:
            raise MIMUnsupportedError(
                f'{type(backbone).__name__} returns features of stride {features.stride}; CAPI needs the stride of its '
                f'patches, {self.patch_stride}.')
        weight = next(backbone.parameters())
        dd = {'device': weight.device, 'dtype': weight.dtype}
        width = predictor_dim or tokens.channels
        # of the default, so many that the width of a head is a multiple of 4, as the rotary embedding needs
        heads = default_num_heads(backbone, max(width // 4, 1)) if predictor_heads is None else predictor_heads
        predictor = RotaryCrossDecoder(
            self.grid_size, tokens.channels, width, predictor_depth, heads, self.num_prefix_tokens, **dd)
        remove_unused(backbone, sorted({*tokens.unused, *features.unused}))

        self.add_target_encoder(momentum)
        self.predictor = predictor
        self.head = nn.Linear(width, num_clusters, bias=False, **dd)
        self.clustering = nn.Linear(features.channels, num_clusters, **dd)
        nn.init.normal_(self.head.weight)  # only the directions of its rows count
        nn.init.normal_(self.clustering.weight)
        nn.init.zeros_(self.clustering.bias)

    def predict(self, images: torch.Tensor, mask: CAPIMask) -> torch.Tensor:
        """Predict the logits (B, M, C) of the clusters of masked patches.

        Args:
            images: Images of shape (B, C, H, W) whose masked pixels are 0.
            mask: Mask.
        """
        context = self.encode_visible(images, mask.visible, self.grid_size)
        tokens = F.normalize(self.predictor(context, mask.visible, mask.predicted), dim=-1)
        return full_precision(F.linear(tokens, F.normalize(self.head.weight, dim=-1)))

    def make_target(self, images: torch.Tensor, mask: CAPIMask) -> CAPITarget:
        """Assign the teacher's features of whole images to clusters."""
        features = self.encode_target(images)  # (B, N, D)
        logits = full_precision(self.clustering(F.normalize(features, dim=-1)))  # (B, N, C)
        # held-out images are balanced by each process, since processes may have different numbers of batches
        shares = sinkhorn_knopp(
            logits.detach() / self.teacher_temperature, self.sinkhorn_iterations, distributed=self.training)
        loss = _cross_entropy(logits / self.student_temperature, shares)
        predicted = shares.gather(1, mask.predicted.unsqueeze(-1).expand(-1, -1, shares.shape[-1]))
        return CAPITarget(predicted, loss, {**_entropies(shares), **variety(features)})

    def compare(self, prediction: torch.Tensor, target: CAPITarget, mask: CAPIMask) -> MIMOutput:
        """Add the cross-entropy of the prediction and the loss of the clustering."""
        loss = _cross_entropy(prediction / self.student_temperature, target.assignments)
        logs = dict(
            prediction_loss=loss.detach(), clustering_loss=target.clustering_loss.detach(), **target.logs)
        return MIMOutput(loss + target.clustering_loss, prediction, target.assignments, mask.patches, logs)

    def make_mask(self, noise: torch.Tensor, img_size: Optional[Tuple[int, int]] = None) -> torch.Tensor:
        """Make a mask (B, h, w) bool from noise: all patches but a block, see `inverse_block_mask`.

        Args:
            noise: Noise of the shape that `noise_shape` returns.
            img_size: Ignored, since the method accepts one image size only.
        """
        block = noise[:, :inverse_block_noise_size()]
        return inverse_block_mask(block, self.grid_size, self.num_visible, self.mask_aspect, self.mask_roll)

    def drawn_mask(self, noise: torch.Tensor, img_size: Tuple[int, int]) -> CAPIMask:
        """Make a mask from noise, and choose the patches to predict by the last N values."""
        patches = self.make_mask(noise)
        visible, _ = split_mask(patches.flatten(1), self.num_visible)
        order = noise[:, -self.num_patches:].masked_fill(~patches.flatten(1), -1.)
        chosen = order.argsort(dim=1, descending=True, stable=True)[:, :self.num_predicted]
        return CAPIMask(patches, visible, chosen.sort(dim=1).values)

    def given_mask(self, mask: torch.Tensor, images: torch.Tensor) -> CAPIMask:
        """Check a caller's mask, bool of shape (B, h, w) or (B, h * w), and predict all its masked patches.

        Raises:
            ValueError: Shape, dtype or device are wrong, the number of masked patches differs between samples, or no
                patch or every patch is masked.
        """
        mask = self._check_mask(mask, images)
        num_visible = self._count_visible(mask)
        if num_visible == self.num_patches:
            raise ValueError('mask must mask at least one patch, got none.')
        return CAPIMask(mask, *split_mask(mask.flatten(1), num_visible))

    def hidden_patches(self, mask: CAPIMask) -> torch.Tensor:
        """Return the patches (B, h, w) bool whose pixels the student must not see."""
        return mask.patches

    def noise_shape(self, batch_size: int) -> Tuple[int, int]:
        """Return the shape of the noise for the masks of a batch: values for the block, then one for each patch."""
        return batch_size, inverse_block_noise_size() + self.num_patches

    def momentum_at(self, progress: float) -> float:
        """Return the momentum: it falls from 1 in the warm-up, then changes linearly to the value of the end."""
        first, last = self.momentum
        if progress < self.momentum_warmup:
            return 1 + (first - 1) * progress / self.momentum_warmup
        return first + (last - first) * (progress - self.momentum_warmup) / (1 - self.momentum_warmup)

    def own_optimizers(self) -> Dict[str, Dict[str, Any]]:
        """Return the settings of the clustering's optimizer, see `MIMMethod.own_optimizers`."""
        return {'clustering.': dict(
            opt='adamw', opt_betas=[0.9, 0.95], lr_scale=self.clustering_lr_scale,
            weight_decay=self.clustering_weight_decay)}

    @property
    def encoder(self) -> nn.Module:
        """The teacher, which the paper evaluates."""
        return self.target_encoder

    def uninformed_losses(self, output: MIMOutput) -> Dict[str, torch.Tensor]:
        """Return the loss if both predictions are equal shares of all clusters."""
        return dict(loss_of_equal_shares=output.loss.new_tensor(2 * math.log(self.num_clusters)))

    @torch.no_grad()
    def views(self, images: torch.Tensor, noise: torch.Tensor) -> List[View]:
        """Return views of the images, of what the student sees, and of the clusters, each with a colour of its own:
        those that the teacher assigns, and those that the student predicts at masked patches.
        """
        mask = self.make_mask(noise)
        hole = self.pixel_mask(mask)
        split = self.given_mask(mask, images)
        features = F.normalize(self.encode_target(images), dim=-1)
        assigned = self.clustering(features).argmax(dim=-1)  # (B, N)
        predicted = self.predict(self.blank(images, split), split).argmax(dim=-1)  # (B, N - K)
        filled = assigned.scatter(1, split.predicted, predicted)
        return [
            View('original', images),
            View('masked input', images, hole),
            View('clusters of the teacher', self._paint(assigned, images)),
            View('predicted clusters', self._paint(filled, images), ~hole),
        ]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the model and the predictor."""
        super().set_grad_checkpointing(enable)
        self.predictor.set_grad_checkpointing(enable)

    def _paint(self, clusters: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, C, H, W) whose patches have the colours of clusters (B, N)."""
        colours = torch.rand(self.num_clusters, self.in_chans, generator=torch.Generator().manual_seed(0)) * 4 - 2
        painted = colours.to(images)[clusters].transpose(1, 2).unflatten(2, self.grid_size)  # (B, C, h, w)
        return F.interpolate(painted, images.shape[-2:], mode='nearest')

    @staticmethod
    def _check_numbers(**values: float) -> None:
        for name, value in values.items():
            whole = name in ('num_clusters', 'sinkhorn_iterations')
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                raise ValueError(f'{name} must be a positive {"integer" if whole else "number"}, got {value!r}.')


def _cross_entropy(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of logits (B, N, C) against shares (B, N, C)."""
    return -(shares * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def _entropies(shares: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Return the entropy of the assignments of a patch, and of all together, divided by that of equal shares."""
    def entropy(distribution: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(distribution).sum(dim=-1).mean() / math.log(max(distribution.shape[-1], 2))

    return dict(assignment_entropy=entropy(shares), cluster_entropy=entropy(shares.mean(dim=(0, 1))))
