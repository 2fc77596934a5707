"""Masked image modeling on NaFlex batches: images of different sizes and aspect ratios, as sequences of patches.

timm's NaFlex loader resizes each image to at most N patches, keeps its aspect ratio, and pads the sequence. A batch is
a dict of `patches` (B, N, D), `patch_coord` (B, N, 2) in the order (row, column), and `patch_valid` (B, N), which is
False for padding. The valid patches come first, in row-major order. `NaFlexMethod` is the part that MAE and SimMIM
share; the model is a `timm.models.NaFlexVit`.

- Masks are drawn among the valid patches of each image. Every image has its own number of patches, and the share that
  is masked is exact for each.
- The methods set padding and masked patches to 0 before the model gets them, and exclude padding from every attention.
  `forward` first cuts the padding behind the longest image of the batch, so that the loss and the gradients do not
  depend on how much padding there is, to the last bit.
- The loss is the sum over all masked patches of the batch, divided by their number: each patch has the same weight,
  whatever the image it belongs to.

Shape letters: B batch, N patches with padding, D pixels times channels of a patch, K visible and M masked patches of
the image that has the most of them, P prefix tokens, C width of a token.
"""
from fractions import Fraction
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F

from timm.models.naflexvit import NaFlexVit, create_attention_mask

from .errors import MIMUnsupportedError
from .method import MIMMethod
from .output import WITH_TRUE_STATISTICS, MIMOutput, View
from .targets import patch_statistics, unpatchify

__all__ = [
    'NaFlexBatch', 'NaFlexMask', 'NaFlexMethod', 'attention_mask', 'encode_visible_naflex', 'naflex_images',
    'share_masked', 'smallest_units', 'split_naflex_mask',
]

_KEYS = ('patches', 'patch_coord', 'patch_valid')


class NaFlexBatch(NamedTuple):
    """Batch of images as sequences of patches, with padding behind the patches of an image.

    Attributes:
        patches: Pixels of shape (B, N, D), in the order (row, column, channel); 0 for padding.
        coord: Row and column of each patch of shape (B, N, 2) int64; 0 for padding.
        valid: Patches that are not padding of shape (B, N) bool.
    """
    patches: torch.Tensor
    coord: torch.Tensor
    valid: torch.Tensor

    def blank(self, mask: torch.Tensor) -> 'NaFlexBatch':
        """Set masked patches (B, N) bool to 0. This also removes infinite values and NaN."""
        return self._replace(patches=self.patches.masked_fill(mask.unsqueeze(-1), 0.))

    def cut(self) -> 'NaFlexBatch':
        """Cut the padding that no image of the batch needs: the length becomes that of the longest image.

        Matrix products over other lengths add in another order. Without the cut, the same images with more padding
        would have another loss in the last bits. A graph of `torch.compile` has a fixed length and keeps the padding.
        The host waits for the device.
        """
        if torch.compiler.is_compiling():
            return self
        length = int(self.valid.sum(dim=1).max())
        return NaFlexBatch(*(values[:, :length] for values in self))


class NaFlexMask(NamedTuple):
    """Mask of a batch of images with different numbers of patches.

    The indices of an image with fewer patches than others end with indices that the masks of validity exclude.

    Attributes:
        patches: Masked patches of shape (B, N) bool, True is masked, False for padding.
        visible: Indices of the visible patches of shape (B, K).
        visible_valid: Indices in `visible` that count, of shape (B, K) bool.
        masked: Indices of the masked patches of shape (B, M).
        masked_valid: Indices in `masked` that count, of shape (B, M) bool.
    """
    patches: torch.Tensor
    visible: torch.Tensor
    visible_valid: torch.Tensor
    masked: torch.Tensor
    masked_valid: torch.Tensor


def share_masked(count: Union[int, torch.Tensor], ratio: float) -> Union[int, torch.Tensor]:
    """Return how many of `count` units to mask: `count * ratio` rounded up, and at most `count - 1`.

    The computation is exact, in integers; the ratio is read as a decimal number. A grid of one unit is not masked.

    Args:
        count: Number of units, at least 1, or a tensor of them.
        ratio: Share of units to mask, in (0, 1).
    """
    share = Fraction(str(ratio))
    masked = -(-count * share.numerator // share.denominator)
    return torch.minimum(masked, count - 1) if isinstance(count, torch.Tensor) else min(masked, count - 1)


def smallest_units(
        noise: torch.Tensor,
        batch: NaFlexBatch,
        unit: Tuple[int, int],
        ratio: float,
        of_masked: bool,
) -> torch.Tensor:
    """Mask an exact share of the units of each image.

    The units form a grid from the upper left corner of the image. Where the size of a unit does not divide the grid of
    patches, the units at the right and the lower border have fewer patches. They count like all others.

    Args:
        noise: Noise of shape (B, N). The value of a unit is that of its first patch.
        batch: Batch.
        unit: Number of patches (down, across) in a unit.
        ratio: Share of units to mask, see `share_masked`.
        of_masked: The units with the smallest noise are masked; otherwise they stay visible, and all others are masked.

    Returns:
        Masked patches of shape (B, N) bool, False for padding.
    """
    rows, columns = batch.coord.unbind(-1)
    width = columns.amax(dim=1, keepdim=True) + 1
    # index of the first patch of the unit that a patch belongs to; patches are in row-major order
    first = rows // unit[0] * unit[0] * width + columns // unit[1] * unit[1]  # (B, N)
    places = torch.arange(noise.shape[1], device=noise.device)
    is_first = batch.valid & (first == places)
    # a stable sort resolves ties in the same way on every device
    order = noise.masked_fill(~is_first, float('inf')).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter(1, order, places.expand_as(order))
    num_units = is_first.sum(dim=1, keepdim=True)
    num_masked = share_masked(num_units, ratio)
    masked = rank < num_masked if of_masked else rank >= num_units - num_masked
    return masked.gather(1, first) & batch.valid


def split_naflex_mask(
        mask: torch.Tensor,
        valid: torch.Tensor,
        num_visible: Optional[int] = None,
        num_masked: Optional[int] = None,
) -> NaFlexMask:
    """Find the indices of the visible and of the masked patches, each in row-major order.

    Args:
        mask: Masked patches of shape (B, N) bool, False for padding.
        valid: Patches that are not padding of shape (B, N) bool.
        num_visible: Length K of the indices of visible patches. If None, the host reads it from the device.
        num_masked: Length M of the indices of masked patches. If None, the host reads it from the device.
    """
    def indices(chosen: torch.Tensor, length: Optional[int]) -> Tuple[torch.Tensor, torch.Tensor]:
        count = chosen.sum(dim=1, keepdim=True)
        length = int(count.max()) if length is None else length
        order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
        return order, torch.arange(length, device=mask.device) < count

    return NaFlexMask(mask, *indices(valid & ~mask, num_visible), *indices(mask, num_masked))


def attention_mask(valid: torch.Tensor, num_prefix_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask (B, 1, 1, P + N) to add to attention scores, so that no token attends to padding.

    Args:
        valid: Patches (B, N) bool that are not padding.
        num_prefix_tokens: Number of prefix tokens P in front of the patches.
        dtype: Dtype of the tokens.
    """
    return create_attention_mask(valid, num_prefix_tokens, symmetric=False, q_len=1, dtype=dtype)


def encode_visible_naflex(backbone: NaFlexVit, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
    """Encode the visible patches.

    Args:
        backbone: Model.
        batch: Batch whose masked patches are 0.
        mask: Mask.

    Returns:
        Prefix tokens and visible patches of shape (B, P + K, C).
    """
    # positions first: the model reads the grid of each image from the coordinates of all of its patches
    embedded = backbone.keep_tokens(backbone.embed(batch.patches, patch_coord=batch.coord), mask.visible)
    keys = attention_mask(mask.visible_valid, backbone.num_prefix_tokens, embedded.tokens.dtype)
    return backbone.forward_stages(embedded._replace(patch_valid=mask.visible_valid, attn_mask=keys))['patches']


def naflex_images(patches: torch.Tensor, batch: NaFlexBatch, patch_size: Tuple[int, int]) -> List[torch.Tensor]:
    """Assemble each image from its patches, without padding.

    Args:
        patches: Values of shape (B, N, height * width * channels).
        batch: Batch with the coordinates.
        patch_size: Patch (height, width).

    Returns:
        Images of shape (channels, H, W), each of its own size.
    """
    sizes = (batch.coord.amax(dim=1) + 1).tolist()
    return [
        unpatchify(patches[i:i + 1, :height * width], patch_size, (height, width))[0]
        for i, (height, width) in enumerate(sizes)]


class NaFlexMethod(MIMMethod):
    """Base class of the methods that take NaFlex batches as well as images.

    `forward`, `reconstruct` and `views` take a dict in place of images. A mask is then bool of shape (B, N), and noise
    has the shape (B, N). A subclass implements `make_naflex_mask`, `predict_naflex` and `naflex_target`, and
    `compare_patches`, the distance of a prediction for each patch.
    """

    def forward(
            self,
            images: Union[torch.Tensor, Dict[str, torch.Tensor]],
            mask: Optional[Any] = None,
            noise: Optional[torch.Tensor] = None,
            generator: Optional[torch.Generator] = None,
    ) -> MIMOutput:
        """Mask images, predict the target from the visible patches, and compute the loss.

        Args:
            images: Normalised images of shape (B, C, H, W), or a NaFlex batch: a dict of `patches` (B, N, D),
                `patch_coord` (B, N, 2) and `patch_valid` (B, N).
            mask: Mask in the form that the method's `given_mask` describes, for a NaFlex batch bool of shape (B, N).
            noise: Noise to make a mask from, of the shape that `noise_shape` returns, for a NaFlex batch (B, N).
            generator: Generator to draw noise with, on the device of the images. The default generator if None.

        Returns:
            Loss, prediction, target and mask. For a NaFlex batch, prediction and target are those of patches (B, M, D)
            or (B, N, D), and the mask has the shape (B, N). The loss is the mean over all masked patches of the batch.

        Raises:
            MIMUnsupportedError: The model or an option of the method does not work with NaFlex batches.
            ValueError: An argument has the wrong shape or type, the valid patches of an image are not a whole grid in
                row-major order, for example because the batch was truncated, or a mask is given together with noise or
                a generator.
        """
        if not isinstance(images, dict):
            return super().forward(images, mask, noise, generator)
        batch = self.read_naflex(images)
        self._check_one_source(mask, noise, generator)
        if mask is None:
            noise = self.get_noise(tuple(batch.valid.shape), batch.patches, noise, generator)
        else:
            self._check_naflex_mask(mask, batch)
        padded, batch = batch, batch.cut()
        length = batch.valid.shape[1]
        if mask is None:
            mask = self.drawn_naflex_mask(noise[:, :length], batch)
        else:
            mask = self.given_naflex_mask(mask[:, :length], batch)
        prediction = self.predict_naflex(batch.blank(mask.patches), mask)
        target, chosen = self.naflex_target(batch, mask)
        error = self.compare_patches(prediction, target)  # (B, M)
        # `where`, not a product: an excluded patch contributes nothing, whatever its value
        total = torch.where(chosen, error, 0.).sum()
        loss = total / chosen.sum().clamp(min=1)
        cut = padded.valid.shape[1] - length
        if cut:
            prediction, target = (
                F.pad(values, (0, 0, 0, cut)) if values.shape[1] == length else values  # the others are (B, M, D)
                for values in (prediction, target))
        return MIMOutput(loss, prediction, target, F.pad(mask.patches, (0, cut)))

    def naflex_refusal(self) -> Optional[str]:
        """Return why the model or an option does not work with NaFlex batches, None if all do."""
        if not isinstance(self.backbone, NaFlexVit):
            return (
                f'the model is a {type(self.backbone).__name__}, not a NaFlexVit: choose a naflexvit model, or build a '
                'ViT or EVA with use_naflex=True')
        if not self.backbone.embeds.is_linear:
            return "the model embeds images with a convolution: build it with embed_proj_type='linear'"
        if not self.backbone.embeds.channels_last:
            return 'the model takes patches with channels first, which is not supported'
        if self.masking != 'random':
            return f"masking '{self.masking}' draws blocks on one grid for all images: use 'random'"
        return None

    def check_naflex(self) -> None:
        """Check that the model and all options work with NaFlex batches.

        Raises:
            MIMUnsupportedError: Something does not.
        """
        reason = self.naflex_refusal()
        if reason:
            raise MIMUnsupportedError(f'{type(self).__name__} does not take NaFlex batches here: {reason}.')

    def read_naflex(self, batch: Dict[str, torch.Tensor]) -> NaFlexBatch:
        """Check a NaFlex batch, and set its padding to 0.

        Args:
            batch: Dict of `patches` (B, N, D) or (B, N, height, width, channels), `patch_coord` and `patch_valid`.

        Raises:
            MIMUnsupportedError: The model or an option does not work with NaFlex batches, or the patches have another
                size than those of the model.
            ValueError: A tensor is missing or has the wrong shape or type, or an image is not a whole grid.
        """
        self.check_naflex()
        missing = [name for name in _KEYS if batch.get(name) is None]
        if missing:
            raise ValueError(f'A NaFlex batch is a dict of {", ".join(_KEYS)}; {", ".join(missing)} is missing.')
        patches, coord, valid = (batch[name] for name in _KEYS)
        if patches.ndim == 5:
            if tuple(patches.shape[2:4]) != tuple(self.patch_stride):
                raise MIMUnsupportedError(
                    f'{type(self).__name__} predicts patches of {self.patch_stride[0]} x {self.patch_stride[1]} '
                    f'pixels, the size that the model was built for, and the batch has patches of {patches.shape[2]} x '
                    f'{patches.shape[3]}: several patch sizes are not supported.')
            patches = patches.flatten(2)
        width = self.patch_stride[0] * self.patch_stride[1] * self.in_chans
        if patches.ndim != 3 or patches.shape[2] != width or not patches.is_floating_point():
            raise ValueError(
                f'patches must be normalised floats of shape (B, N, {width}), got {patches.dtype} of shape '
                f'{tuple(patches.shape)}.')
        shape = tuple(patches.shape[:2])
        if tuple(coord.shape) != (*shape, 2) or coord.dtype != torch.int64:
            raise ValueError(
                f'patch_coord must be int64 of shape {(*shape, 2)}, got {coord.dtype} of shape {tuple(coord.shape)}.')
        if tuple(valid.shape) != shape or valid.dtype != torch.bool:
            raise ValueError(
                f'patch_valid must be bool of shape {shape}, got {valid.dtype} of shape {tuple(valid.shape)}.')
        padding = ~valid.unsqueeze(-1)
        coord = coord.masked_fill(padding, 0)
        if not torch.compiler.is_compiling():
            _check_grids(coord, valid)
        return NaFlexBatch(patches.masked_fill(padding, 0.), coord, valid)

    def make_naflex_mask(self, noise: torch.Tensor, batch: Union[NaFlexBatch, Dict[str, torch.Tensor]]) -> torch.Tensor:
        """Make the masks (B, N) bool of a NaFlex batch from noise (B, N), as `forward` does."""
        raise NotImplementedError

    def drawn_naflex_mask(self, noise: torch.Tensor, batch: NaFlexBatch) -> NaFlexMask:
        """Make the mask for `predict_naflex` from noise (B, N)."""
        raise NotImplementedError

    def predict_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict the target from a batch whose masked patches are 0.

        Args:
            batch: Batch.
            mask: Mask.

        Returns:
            Prediction of shape (B, M, D) or (B, N, D), in the order of `naflex_target`.
        """
        raise NotImplementedError

    def naflex_target(self, batch: NaFlexBatch, mask: NaFlexMask) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return the target in the shape of the prediction, and the patches (B, M) or (B, N) bool that count."""
        raise NotImplementedError

    def compare_patches(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the distance between prediction and target of each patch, of shape (B, M) or (B, N)."""
        raise NotImplementedError

    def reconstruct_naflex(self, batch: NaFlexBatch, mask: NaFlexMask) -> torch.Tensor:
        """Predict all patches (B, N, D) from the visible ones. Values of padding have no meaning."""
        raise NotImplementedError

    def given_naflex_mask(self, mask: torch.Tensor, batch: NaFlexBatch) -> NaFlexMask:
        """Check a caller's mask, bool of shape (B, N), and find the indices of its patches. Padding is never masked.

        The host reads numbers of patches from the device, which it has to wait for.

        Raises:
            ValueError: Shape, dtype or device are wrong, or an image has no visible patch.
        """
        self._check_naflex_mask(mask, batch)
        if not bool((batch.valid & ~mask).any(dim=1).all()):
            raise ValueError('mask must leave at least one patch of each image visible.')
        return split_naflex_mask(mask & batch.valid, batch.valid)

    @staticmethod
    def _check_naflex_mask(mask: torch.Tensor, batch: NaFlexBatch) -> None:
        if mask.dtype != torch.bool or mask.shape != batch.valid.shape or mask.device != batch.valid.device:
            raise ValueError(
                f'The mask of a NaFlex batch must be bool of shape {tuple(batch.valid.shape)} on {batch.valid.device}, '
                f'got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}.')

    def count_masked(self, images: Dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        """Return the number of patches that the loss of a NaFlex batch is a mean over, as a scalar tensor.

        Processes that train together divide the sum of all losses by the sum of these numbers.
        """
        return self.make_naflex_mask(noise, images).sum()

    def views(
            self,
            images: Union[torch.Tensor, Dict[str, torch.Tensor]],
            noise: torch.Tensor,
    ) -> List[View]:
        """Return views of a step, see `MIMMethod.views`. For a NaFlex batch, each image keeps its own size.

        Where the method predicts normalised patches, each predicted patch gets its true mean and variance.
        """
        if not isinstance(images, dict):
            return super().views(images, noise)
        batch = self.read_naflex(images)
        mask = self.given_naflex_mask(self.make_naflex_mask(noise, batch), batch)
        original = naflex_images(batch.patches, batch, self.patch_stride)
        hole = self.naflex_pixel_mask(mask.patches, batch)
        predicted = self.reconstruct_naflex(batch.blank(mask.patches), mask)
        label = 'visible + prediction'
        if not self.reconstructs_pixels:
            mean, std = patch_statistics(batch.patches)
            predicted, label = predicted * std + mean, WITH_TRUE_STATISTICS
        predicted = naflex_images(predicted.to(batch.patches.dtype), batch, self.patch_stride)
        pixels = [torch.where(h, p, o) for h, p, o in zip(hole, predicted, original)]
        return [View('original', original), View('masked input', original, hole), View(label, pixels)]

    def naflex_pixel_mask(self, mask: torch.Tensor, batch: NaFlexBatch) -> List[torch.Tensor]:
        """Return the masked pixels (1, H, W) bool of each image."""
        size = self.patch_stride[0] * self.patch_stride[1]
        return naflex_images(mask.unsqueeze(-1).expand(-1, -1, size), batch, self.patch_stride)


def _check_grids(coord: torch.Tensor, valid: torch.Tensor) -> None:
    """Check that the valid patches of each image are a whole grid in row-major order, in front of the padding.

    The host waits for the device.

    Args:
        coord: Rows and columns of shape (B, N, 2), 0 for padding.
        valid: Patches that are not padding of shape (B, N).

    Raises:
        ValueError: The patches of an image are not a whole grid, or an image has none.
    """
    height, width = (coord.amax(dim=1) + 1).unbind(dim=1)
    count = valid.sum(dim=1)
    places = torch.arange(valid.shape[1], device=valid.device)
    expected = torch.stack([places // width.unsqueeze(1), places % width.unsqueeze(1)], dim=-1)
    in_order = (coord == expected).all(dim=-1) | ~valid
    whole = (count == height * width) & (valid == (places < count.unsqueeze(1))).all(dim=1) & in_order.all(dim=1)
    if bool(whole.all()):
        return
    image = int((~whole).nonzero()[0])
    raise ValueError(
        f'Image {image} of the NaFlex batch has {int(count[image])} valid patches that are not the whole grid of '
        f'{int(height[image])} x {int(width[image])} patches in row-major order in front of the padding: the sequence '
        'was truncated, or patches were dropped or moved. Give the loader a longer sequence (max_seq_len).')
