# Overlay: woven into upstream's timm/models/naflexvit.py when the package is built.
# Read the result in build/timm/models/naflexvit.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, gather_patches, nlc_to_map


class NaFlexEmbeds(nn.Module):

    @moved_from('forward', through='x = self.norm(x)', without='B = x.shape[0]')
    def embed_patches(
            self,
            x: torch.Tensor,
            patch_coord: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Optional[Tuple[int, int]]]:
        """Embed images or patches, see forward, as patch tokens (B, N, C) and their grid, None in NaFlex mode."""
        ...
        return x, grid_size

    @moved_from('forward', after='x = self.norm(x)')
    def embed_positions(
            self,
            x: torch.Tensor,
            grid_size: Optional[Tuple[int, int]],
            patch_coord: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Optional[Tuple[int, int]]]:
        """Add position embeddings to patch tokens (B, N, C) in place, and prefix tokens before them."""
        B = x.shape[0]
        ...

    def forward(
            self,
            x: torch.Tensor,
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Optional[Tuple[int, int]]]:
        """Forward pass for patch embedding with position encoding.

        Args:
            x: Images (B, C, H, W), or patches (B, N, P * P * C) or (B, N, Ph, Pw, C) in NaFlex mode.
            patch_coord: Patch coordinates (B, N, 2), given in NaFlex mode.
            patch_valid: Which patches are no padding (B, N), not needed here.

        Returns:
            Tokens (B, P + N, C), and the grid (H, W), None in NaFlex mode.
        """
        x, grid_size = self.embed_patches(x, patch_coord)
        return self.embed_positions(x, grid_size, patch_coord)


class NaFlexPatches(NamedTuple):
    """Patch tokens (B, N, C) before positions, their grid (H, W), None in NaFlex mode, and what came with them."""
    tokens: torch.Tensor
    grid_size: Optional[Tuple[int, int]]
    patch_coord: Optional[torch.Tensor]
    patch_valid: Optional[torch.Tensor]
    attn_mask: Optional[torch.Tensor]


class NaFlexTokens(NamedTuple):
    """Tokens (B, P + N, C) and what the blocks need with them.

    The rotary embedding is (N, dim), or (B, 1, N, dim) where it differs between samples. If each block has its own, it
    is a sequence of (num_heads, N, dim) or (B, num_heads, N, dim), from which the stages take the `keep_indices` (B, K)
    of a patch dropout.
    """
    tokens: torch.Tensor
    patch_valid: Optional[torch.Tensor]
    rope_embeds: Union[None, torch.Tensor, List[torch.Tensor], NaFlexRopeIterator]
    attn_mask: Optional[torch.Tensor]
    keep_indices: Optional[torch.Tensor]
    naflex_mode: bool


def unpack_naflex_batch(
        patches: Union[torch.Tensor, Dict[str, torch.Tensor]],
        patch_coord: Optional[torch.Tensor] = None,
        patch_valid: Optional[torch.Tensor] = None,
        attn_mask: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Tensors of a batch, what is in a dict from the NaFlex collator takes priority over arguments."""
    if not isinstance(patches, dict):
        return patches, patch_coord, patch_valid, attn_mask
    return (
        patches['patches'],
        patches.get('patch_coord', patch_coord),
        patches.get('patch_valid', patch_valid),
        patches.get('attn_mask', attn_mask),
    )


def gather_attention_mask(attn_mask: torch.Tensor, keep: torch.Tensor, num_prefix_tokens: int) -> torch.Tensor:
    """Rows and columns of prefix tokens and kept patches (B, K), of a mask that broadcasts to (B, heads, S, S)."""
    prefix = torch.arange(num_prefix_tokens, device=keep.device).expand(keep.shape[0], -1)
    places = torch.cat([prefix, keep + num_prefix_tokens], dim=1)
    attn_mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + attn_mask.shape).expand(keep.shape[0], -1, -1, -1)
    _, num_heads, num_queries, _ = attn_mask.shape
    attn_mask = attn_mask.gather(3, places[:, None, None].expand(-1, num_heads, num_queries, -1))
    if num_queries == 1:
        return attn_mask
    return attn_mask.gather(2, places[:, None, :, None].expand(-1, num_heads, -1, attn_mask.shape[3]))


class NaFlexVit(EmbedStagesMixin, nn.Module):

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens of an image (B, C, H, W)."""
        height, width = self.embeds.dynamic_feat_size(img_size)
        return height, width

    @moved_from(
        '_forward_embeds',
        after='naflex_mode = patch_coord is not None',
        through='x, grid_size = self.embeds(x, patch_coord=patch_coord, patch_valid=patch_valid)',
    )
    def _forward_embeds(
            self,
            x,
            patch_coord,
            patch_valid,
            attn_mask,
    ) -> Dict[str, torch.Tensor]:
        """Forward pass through patch / abs pos / rope pos embeds and patch dropout"""
        ...
        return self._forward_rope(x, grid_size, patch_coord, patch_valid, attn_mask)

    @moved_from(
        '_forward_embeds',
        after='x, grid_size = self.embeds(x, patch_coord=patch_coord, patch_valid=patch_valid)',
    )
    def _forward_rope(
            self,
            x,
            grid_size,
            patch_coord,
            patch_valid,
            attn_mask,
    ) -> Dict[str, torch.Tensor]:
        """What follows absolute positions: rope pos embeds, patch dropout, attention mask, pre-norm"""
        naflex_mode = patch_coord is not None
        ...

    def embed_patches(
            self,
            patches: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
            attn_mask: Optional[torch.Tensor] = None,
    ) -> NaFlexPatches:
        """Embed images (B, C, H, W), or a NaFlex batch as `embed` takes it, as patch tokens before positions."""
        patches, patch_coord, patch_valid, attn_mask = unpack_naflex_batch(patches, patch_coord, patch_valid, attn_mask)
        x, grid_size = self.embeds.embed_patches(patches, patch_coord)
        return NaFlexPatches(x, grid_size, patch_coord, patch_valid, attn_mask)

    def embed_positions(self, patches: NaFlexPatches) -> NaFlexTokens:
        """Add positions and prefix tokens to patch tokens, make rotary embeddings and attention mask."""
        x, grid_size, patch_coord, patch_valid, attn_mask = patches
        # positions are added in place
        x, grid_size = self.embeds.embed_positions(x.clone(), grid_size, patch_coord)
        embeds = self._forward_rope(x, grid_size, patch_coord, patch_valid, attn_mask)
        return NaFlexTokens(
            embeds['patches'],
            embeds['patch_valid'],
            embeds['rope_embeds'],
            embeds['attn_mask'],
            embeds['keep_indices'],
            patch_coord is not None,
        )

    @moved_from('forward_features', through="attn_mask = embeds.get('attn_mask', None)")
    def embed(
            self,
            patches: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
            attn_mask: Optional[torch.Tensor] = None,
    ) -> NaFlexTokens:
        """Embed images or a NaFlex batch, the result is the input of `forward_stages`.

        Args:
            patches: Images (B, C, H, W). In NaFlex mode patches (B, N, P * P * C) or (B, N, Ph, Pw, C), or the dict of
                the NaFlex collator with all of these arguments.
            patch_coord: Patch coordinates (B, N, 2), given in NaFlex mode.
            patch_valid: Which patches are no padding (B, N).
            attn_mask: Attention mask in place of the one that is made from `patch_valid`.
        """
        patches, patch_coord, patch_valid, attn_mask = unpack_naflex_batch(patches, patch_coord, patch_valid, attn_mask)
        ...
        return NaFlexTokens(x, embeds.get('patch_valid', None), rope_embeds, attn_mask, keep_indices, naflex_mode)

    @moved_from(
        'forward_features',
        after="attn_mask = embeds.get('attn_mask', None)",
        without=('if naflex_mode: ...', 'return x'),
    )
    def forward_stages(self, embedded: NaFlexTokens) -> Union[torch.Tensor, Dict[str, torch.Tensor]]:
        """Forward pass through transformer blocks and final norm.

        Returns:
            Features (B, P + N, C), in NaFlex mode a dict with them as 'patches', and 'patch_valid'.
        """
        x, patch_valid, rope_embeds, attn_mask, keep_indices, naflex_mode = embedded
        ...
        if naflex_mode:
            return {'patches': x, 'patch_valid': patch_valid}
        return x

    @torch.jit.ignore
    def keep_tokens(self, embedded: NaFlexTokens, keep: torch.Tensor) -> NaFlexTokens:
        """Keep all prefix tokens and the patch tokens at indices (B, K), with all that belongs to them."""
        x, patch_valid, rope_embeds, attn_mask, keep_indices, naflex_mode = embedded
        if rope_embeds is not None and self.rope_is_mixed:
            # one per block, of all patches as long as those of a patch dropout are not taken from it
            indices = keep if keep_indices is None else keep_indices.gather(1, keep)
            rope_embeds = [
                apply_keep_indices_nlc(x, rope, indices, pos_embed_has_batch=rope.ndim == 4) for rope in rope_embeds]
        elif rope_embeds is not None:
            batched = rope_embeds.ndim == 4
            rope_embeds = apply_keep_indices_nlc(x, rope_embeds, keep, pos_embed_has_batch=batched)
            rope_embeds = rope_embeds if batched else rope_embeds.unsqueeze(1)
        if patch_valid is not None:
            patch_valid = patch_valid.gather(1, keep)
        if attn_mask is not None:
            attn_mask = gather_attention_mask(attn_mask, keep, self.num_prefix_tokens)
        x = gather_patches(x, keep, self.num_prefix_tokens)
        return NaFlexTokens(x, patch_valid, rope_embeds, attn_mask, None, naflex_mode)

    @torch.jit.ignore
    def features_to_map(
            self,
            features: Union[torch.Tensor, Dict[str, torch.Tensor]],
            grid_size: Tuple[int, int],
    ) -> torch.Tensor:
        """Arrange features (B, P + N, C) of images as a feature map (B, C, H, W)."""
        if isinstance(features, dict):
            raise NotImplementedError(
                'NaFlexVit has no feature map in NaFlex mode: each sample has a grid of its own, see patch_coord.')
        return nlc_to_map(features, grid_size, self.num_prefix_tokens)
