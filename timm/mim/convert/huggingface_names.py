""" Names in Checkpoints of Hugging Face's transformers

Pairs of their and our beginning or part of a name, see `Names`.
"""
from .checkpoint import BACKBONE

__all__ = ['SWIN_BLOCK', 'SWIN_IN_MEMORY', 'SWIN_NAMES', 'VIT_BLOCK', 'VIT_IN_MEMORY', 'VIT_NAMES']

_BLOCK = [
    ('.layernorm_before.', '.norm1.'),
    ('.layernorm_after.', '.norm2.'),
    ('.attention.output.dense.', '.attn.proj.'),
    ('.intermediate.dense.', '.mlp.fc1.'),
    ('.output.dense.', '.mlp.fc2.'),
]
VIT_BLOCK = [
    ('.attention.attention.query.', '.attn.q.'),
    ('.attention.attention.key.', '.attn.k.'),
    ('.attention.attention.value.', '.attn.v.'),
    *_BLOCK,
]
SWIN_BLOCK = [
    ('.attention.self.query.', '.attn.q.'),
    ('.attention.self.key.', '.attn.k.'),
    ('.attention.self.value.', '.attn.v.'),
    ('.attention.self.relative_position_bias_table', '.attn.relative_position_bias_table'),
    *_BLOCK,
]
VIT_NAMES = [
    ('vit.embeddings.cls_token', BACKBONE + 'cls_token'),
    ('vit.embeddings.position_embeddings', BACKBONE + 'pos_embed'),
    ('vit.embeddings.patch_embeddings.projection.', BACKBONE + 'patch_embed.proj.'),
    ('vit.encoder.layer', BACKBONE + 'blocks'),
    ('vit.layernorm.', BACKBONE + 'norm.'),
]
SWIN_NAMES = [
    ('swin.embeddings.mask_token', 'mask_token'),
    ('swin.embeddings.patch_embeddings.projection.', BACKBONE + 'patch_embed.proj.'),
    ('swin.embeddings.norm.', BACKBONE + 'patch_embed.norm.'),
    ('swin.encoder.layers.', BACKBONE + 'layers.'),
    ('swin.layernorm.', BACKBONE + 'norm.'),
]
# names of release 5 in memory, with what its save_pretrained makes of the decoder's, and those in files
_IN_MEMORY = [
    ('.attention.o_proj.', '.attention.output.dense.'),
    ('.mlp.fc1.', '.intermediate.dense.'),
    ('.mlp.fc2.', '.output.dense.'),
]
VIT_IN_MEMORY = [
    ('.attention.q_proj.', '.attention.attention.query.'),
    ('.attention.k_proj.', '.attention.attention.key.'),
    ('.attention.v_proj.', '.attention.attention.value.'),
    ('vit.layers.', 'vit.encoder.layer.'),
    ('decoder.decoder_encoder.layer.', 'decoder.decoder_layers.'),
    *_IN_MEMORY,
]
SWIN_IN_MEMORY = [
    ('.attention.q_proj.', '.attention.self.query.'),
    ('.attention.k_proj.', '.attention.self.key.'),
    ('.attention.v_proj.', '.attention.self.value.'),
    ('.attention.relative_position_bias.', '.attention.self.'),
    *_IN_MEMORY,
]
