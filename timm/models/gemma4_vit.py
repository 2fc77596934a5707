# Overlay: woven into upstream's timm/models/gemma4_vit.py when the package is built.
# Read the result in build/timm/models/gemma4_vit.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, gather_patches, nlc_to_map


class PositionTokens(NamedTuple):
    """Tokens (B, N, C), the (x, y) positions (B, N, 2) of their patches, and which are padding (B, N), if any."""
    tokens: torch.Tensor
    position_ids: torch.Tensor
    padding_positions: Optional[torch.Tensor]


class Gemma4PatchEmbed(nn.Module):

    @moved_from('forward', through='padding_positions = ~patch_valid if patch_valid is not None else None')
    def embed_patches(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> PositionTokens:
        """Normalize inputs, patchify and project, see forward."""
        ...
        return PositionTokens(x, position_ids, padding_positions)

    @moved_from('forward', after='padding_positions = ~patch_valid if patch_valid is not None else None')
    def embed_positions(
            self,
            x: torch.Tensor,
            position_ids: torch.Tensor,
            padding_positions: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
        """Add position embeddings to patch tokens (B, N, C)."""
        ...

    def forward(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
        """Embed patches and add their positions.

        Coordinates come in as (y, x), as NaFlex loaders give them, and go out as the (x, y) that the blocks use.

        Returns:
            Tokens (B, N, C), their positions (B, N, 2), and which are padding (B, N), None if none is.
        """
        x, position_ids, padding_positions = self.embed_patches(x, patch_coord, patch_valid)
        return self.embed_positions(x, position_ids, padding_positions)


class Gemma4VitEncoder(EmbedStagesMixin, nn.Module):

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def embed_patches(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> PositionTokens:
        """Embed an image (B, C, H, W), or a NaFlex batch, as patch tokens before position embeddings."""
        self._assert_raw_img_conformant(x if not isinstance(x, dict) else x['patches'])
        return self.patch_embed.embed_patches(x, patch_coord, patch_valid)

    def embed_positions(self, patches: PositionTokens) -> PositionTokens:
        """Add position embeddings to patch tokens."""
        return PositionTokens(*self.patch_embed.embed_positions(*patches))

    @moved_from(
        'forward_features',
        through='x, position_ids, padding_positions = self.patch_embed(x, patch_coord, patch_valid)',
    )
    def embed(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> PositionTokens:
        """Embed an image (B, C, H, W), or a NaFlex batch. Rotary embeddings are made from positions in the stages."""
        ...
        return PositionTokens(x, position_ids, padding_positions)

    @moved_from(
        'forward_features',
        after='x, position_ids, padding_positions = self.patch_embed(x, patch_coord, patch_valid)',
    )
    def forward_stages(self, embedded: PositionTokens) -> torch.Tensor:
        """Forward pass through transformer blocks, features are (B, N, C), before any pooling."""
        x, position_ids, padding_positions = embedded
        ...

    @moved_from('forward', through='x = self._encode(x, position_ids, padding_positions)')
    def forward(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Encode and apply the configured pool, see _pool."""
        ...
        return self._pool(x, position_ids, padding_positions)

    @moved_from('forward', after='x = self._encode(x, position_ids, padding_positions)')
    def _pool(
            self,
            x: torch.Tensor,
            position_ids: torch.Tensor,
            padding_positions: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """Pool patch tokens (B, N, C) as `global_pool` says.

        Returns:
            Soft tokens (B, num_soft_tokens, C) for 'soft', their mean (B, C) for 'avg', else the patch tokens.
        """
        ...

    @torch.jit.ignore
    def keep_tokens(self, embedded: PositionTokens, keep: torch.Tensor) -> PositionTokens:
        """Keep the patch tokens at indices (B, K), with their positions."""
        tokens, position_ids, padding_positions = embedded
        if padding_positions is not None:
            padding_positions = padding_positions.gather(1, keep)
        return PositionTokens(gather_patches(tokens, keep), gather_patches(position_ids, keep), padding_positions)


class Gemma4VitClassifier(EmbedStagesMixin, nn.Module):

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return self.encoder.patch_grid(img_size)

    def embed_patches(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> PositionTokens:
        """Embed an image (B, C, H, W), or a NaFlex batch, as patch tokens before position embeddings."""
        return self.encoder.embed_patches(x, patch_coord, patch_valid)

    def embed_positions(self, patches: PositionTokens) -> PositionTokens:
        """Add position embeddings to patch tokens."""
        return self.encoder.embed_positions(patches)

    def embed(
            self,
            x: Union[torch.Tensor, Dict[str, torch.Tensor]],
            patch_coord: Optional[torch.Tensor] = None,
            patch_valid: Optional[torch.Tensor] = None,
    ) -> PositionTokens:
        """Embed an image (B, C, H, W), or a NaFlex batch. Rotary embeddings are made from positions in the stages."""
        return self.encoder.embed(x, patch_coord, patch_valid)

    def forward_stages(self, embedded: PositionTokens) -> torch.Tensor:
        """Forward pass through transformer blocks and the pool of the encoder, if it has one."""
        _, position_ids, padding_positions = embedded
        return self.encoder._pool(self.encoder.forward_stages(embedded), position_ids, padding_positions)

    @torch.jit.ignore
    def keep_tokens(self, embedded: PositionTokens, keep: torch.Tensor) -> PositionTokens:
        """Keep the patch tokens at indices (B, K), in a model whose encoder does not pool."""
        if self.encoder_pool == 'soft':
            raise NotImplementedError(
                "Gemma4VitClassifier with encoder_pool='soft' cannot drop tokens: it pools neighbours on the grid. "
                "Use encoder_pool=''.")
        return self.encoder.keep_tokens(embedded, keep)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, N, C), or soft tokens (B, N', C), as a feature map (B, C, H', W')."""
        size = self.encoder.pooling_kernel_size if self.encoder_pool == 'soft' else 1
        return nlc_to_map(features, (grid_size[0] // size, grid_size[1] // size))
