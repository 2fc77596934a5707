"""Formats of Hugging Face's transformers: ViTMAE and Pixio, and ViT and Swin for masked image modeling.

The tensor names are those in files, which every release reads. From release 5 on, modules in memory have other names;
these are read, too. A checkpoint is a folder with `config.json` and `model.safetensors`, as for `from_pretrained`.

The epsilon of the layer norms differs (1e-12 by default, 1e-6 in timm) and is not a tensor. Written files record the
epsilon of the timm model. A model that is read gets timm's epsilon, which changes features by about one millionth.
"""
import math
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

import torch
import torch.nn as nn

from .checkpoint import BACKBONE, Checkpoint, ConversionError, Hints, Recipe, Tensors
from .facebook import join_class_tokens, several_class_tokens, split_class_tokens
from .fields import Fields
from .files import Source, write_file, write_json, write_safetensors
from .foreign import ForeignFormat, Names, join_qkv, move_downsampling, split_qkv
from .microsoft import swin_position_indices

__all__ = ['HuggingFacePixio', 'HuggingFaceSwinMIM', 'HuggingFaceViTMAE', 'HuggingFaceViTMIM']

# values of config.json that the tensors determine, too; both must agree
_TOLD_BY_TENSORS = (
    'model_type', 'patch_size', 'num_channels', 'hidden_size', 'num_hidden_layers', 'intermediate_size', 'qkv_bias',
    'n_cls_tokens', 'embed_dim', 'depths', 'num_heads', 'window_size', 'mlp_ratio', 'encoder_stride',
    'decoder_hidden_size', 'decoder_num_hidden_layers', 'decoder_intermediate_size',
)

# pairs (theirs, ours) of beginnings or parts of names, see `Names`
_BLOCK = [
    ('.layernorm_before.', '.norm1.'),
    ('.layernorm_after.', '.norm2.'),
    ('.attention.output.dense.', '.attn.proj.'),
    ('.intermediate.dense.', '.mlp.fc1.'),
    ('.output.dense.', '.mlp.fc2.'),
]
_VIT_BLOCK = [
    ('.attention.attention.query.', '.attn.q.'),
    ('.attention.attention.key.', '.attn.k.'),
    ('.attention.attention.value.', '.attn.v.'),
    *_BLOCK,
]
_PIXIO_BLOCK = [pair for pair in _VIT_BLOCK if 'layernorm' not in pair[0]]  # its norms have timm's names
_SWIN_BLOCK = [
    ('.attention.self.query.', '.attn.q.'),
    ('.attention.self.key.', '.attn.k.'),
    ('.attention.self.value.', '.attn.v.'),
    ('.attention.self.relative_position_bias_table', '.attn.relative_position_bias_table'),
    *_BLOCK,
]
_VIT_NAMES = [
    ('vit.embeddings.cls_token', BACKBONE + 'cls_token'),
    ('vit.embeddings.position_embeddings', BACKBONE + 'pos_embed'),
    ('vit.embeddings.patch_embeddings.projection.', BACKBONE + 'patch_embed.proj.'),
    ('vit.encoder.layer', BACKBONE + 'blocks'),
    ('vit.layernorm.', BACKBONE + 'norm.'),
]
_SWIN_NAMES = [
    ('swin.embeddings.mask_token', 'mask_token'),
    ('swin.embeddings.patch_embeddings.projection.', BACKBONE + 'patch_embed.proj.'),
    ('swin.embeddings.norm.', BACKBONE + 'patch_embed.norm.'),
    ('swin.encoder.layers.', BACKBONE + 'layers.'),
    ('swin.layernorm.', BACKBONE + 'norm.'),
]
# pairs (name in memory from release 5 on, name in files); includes the decoder names that its save_pretrained writes
_IN_MEMORY = [
    ('.attention.o_proj.', '.attention.output.dense.'),
    ('.mlp.fc1.', '.intermediate.dense.'),
    ('.mlp.fc2.', '.output.dense.'),
]
_VIT_IN_MEMORY = [
    ('.attention.q_proj.', '.attention.attention.query.'),
    ('.attention.k_proj.', '.attention.attention.key.'),
    ('.attention.v_proj.', '.attention.attention.value.'),
    ('vit.layers.', 'vit.encoder.layer.'),
    ('decoder.decoder_encoder.layer.', 'decoder.decoder_layers.'),
    *_IN_MEMORY,
]
_SWIN_IN_MEMORY = [
    ('.attention.q_proj.', '.attention.self.query.'),
    ('.attention.k_proj.', '.attention.self.key.'),
    ('.attention.v_proj.', '.attention.self.value.'),
    ('.attention.relative_position_bias.', '.attention.self.'),
    *_IN_MEMORY,
]


class _HuggingFace(ForeignFormat):
    suffixes = ()
    square = False
    model_type = ''
    architecture = ''
    in_memory = _VIT_IN_MEMORY

    def canonical(self, tensors: Tensors) -> Tensors:
        return self.renamed(tensors, self._name_in_files)

    def _name_in_files(self, name: str) -> str:
        for in_memory, in_file in self.in_memory:
            name = name.replace(in_memory, in_file)
        return name

    def to_ours(self, tensors: Tensors) -> Tensors:
        return join_qkv(super().to_ours(tensors))

    def from_ours(self, tensors: Tensors) -> Tensors:
        return super().from_ours(split_qkv(tensors))

    def hints(self, source: Source) -> Hints:
        config = source.config()
        activation = config.text('hidden_act')
        if activation not in (None, 'gelu'):
            raise ConversionError(f"{self.name}: config.json has hidden_act {activation}, timm's is gelu.")
        return Hints(img_size=config.size('image_size'), model_kwargs=self.num_heads(config))

    def num_heads(self, config: Fields) -> Dict[str, Any]:
        """Read the number of attention heads, an argument of the model."""
        heads = config.integer('num_attention_heads')
        return {} if heads is None else dict(num_heads=heads)

    def check_metadata(self, source: Source, recipe: Recipe) -> None:
        config = source.config()
        expected = {name: value for name, value in self.config(recipe).items() if name in _TOLD_BY_TENSORS}
        for name, value in expected.items():
            if name in config and not _same(config.values[name], value):
                raise config.wrong(name, f'{value}, which the tensors show')

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        files = {'config.json': write_json(self.config(recipe)), 'model.safetensors': write_safetensors(tensors, {})}
        for name in files:
            if (path / name).exists() and not force:
                raise ConversionError(f"'{path / name}' exists, --force replaces it.")
        for name, write in files.items():
            write_file(path / name, force, write)

    def config(self, recipe: Recipe) -> Dict[str, Any]:
        """Return the content of `config.json`."""
        model = recipe.backbone
        return dict(
            architectures=[self.architecture],
            model_type=self.model_type,
            image_size=_one_or_pair(recipe.img_size or model.patch_embed.img_size),
            patch_size=_one_or_pair(model.patch_embed.patch_size),
            num_channels=model.patch_embed.proj.in_channels,
            hidden_act='gelu',
            layer_norm_eps=model.norm.eps,
        )


class HuggingFaceViTMAE(_HuggingFace):
    """ViTMAEForPreTraining, or ViTMAEModel, which is the encoder only."""
    name = 'huggingface-vitmae'
    holds = 'plain vision transformers with a class token'
    method = 'mae'
    encoder_alone = True
    model_type = 'vit_mae'
    architecture = 'ViTMAEForPreTraining'
    names = Names([
        *_VIT_NAMES,
        ('decoder.decoder_embed.', 'decoder_embed.'),
        ('decoder.decoder_pred.', 'decoder_pred.'),
        ('decoder.decoder_pos_embed', 'decoder.pos_embed'),
        ('decoder.mask_token', 'decoder.mask_token'),
        ('decoder.decoder_norm.', 'decoder.norm.'),
        ('decoder.decoder_layers', 'decoder.blocks'),
    ], _VIT_BLOCK)

    def recognises(self, source: Source) -> bool:
        names = source.tensors
        if several_class_tokens(names.get('embeddings.cls_token')):
            return False
        encoder = any(name.startswith(('vit.', 'embeddings.')) for name in names)
        decoder = any(name.startswith('decoder.decoder_') for name in names)
        return decoder or (encoder and 'vit.embeddings.mask_token' not in names)

    def canonical(self, tensors: Tensors) -> Tensors:
        if any(name.startswith('embeddings.') for name in tensors):  # ViTMAEModel
            tensors = self.renamed(tensors, lambda name: f'vit.{name}')
        return super().canonical(tensors)

    def hints(self, source: Source) -> Hints:
        config = source.config()
        options = dict(
            decoder_heads=config.integer('decoder_num_attention_heads'),
            norm_pix=config.flag('norm_pix_loss'),
            mask_ratio=config.fraction('mask_ratio') or None,  # 0 means to encode whole images, not a training value
        )
        if config.values and options['norm_pix'] is None:
            options['norm_pix'] = False  # the default of ViTMAEConfig
        options = {name: value for name, value in options.items() if value is not None}
        return super().hints(source)._replace(options=options)

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        recipe = super().recipe_to_write(checkpoint, hints)
        num_patches = recipe.backbone.patch_embed.num_patches
        if math.isqrt(num_patches) ** 2 != num_patches:
            raise ConversionError(
                f'{self.name} cannot hold this model: the number of patches must be a square, got {num_patches}.')
        return recipe

    def save(self, tensors: Tensors, recipe: Recipe, path: Path, force: bool) -> None:
        if recipe.method is None:
            tensors = {name[len('vit.'):]: tensor for name, tensor in tensors.items()}
        super().save(tensors, recipe, path, force)

    def config(self, recipe: Recipe) -> Dict[str, Any]:
        config = {**super().config(recipe), **_vit_config(recipe.backbone)}
        if recipe.method is None:
            return dict(config, architectures=['ViTMAEModel'])
        module = recipe.module
        block = module.decoder.blocks[0]
        return dict(
            config,
            decoder_hidden_size=module.decoder.mask_token.shape[-1],
            decoder_num_hidden_layers=len(module.decoder.blocks),
            decoder_num_attention_heads=block.attn.num_heads,
            decoder_intermediate_size=block.mlp.fc1.out_features,
            norm_pix_loss=module.norm_pix,
            mask_ratio=module.mask_ratio,
        )


class HuggingFacePixio(_HuggingFace):
    """PixioModel, an encoder. Its class tokens become timm's class token and its register tokens."""
    name = 'huggingface-pixio'
    holds = 'plain vision transformers with a class token and register tokens that have positions'
    encoder_alone = True
    registers = True
    model_type = 'pixio'
    architecture = 'PixioModel'
    in_memory = [
        ('.attention.q_proj.', '.attention.attention.query.'),
        ('.attention.k_proj.', '.attention.attention.key.'),
        ('.attention.v_proj.', '.attention.attention.value.'),
        ('.layernorm_before.', '.norm1.'),
        ('.layernorm_after.', '.norm2.'),
        *_IN_MEMORY,
    ]
    names = Names([
        ('embeddings.cls_token', BACKBONE + 'cls_token'),
        ('embeddings.position_embeddings', BACKBONE + 'pos_embed'),
        ('embeddings.patch_embeddings.projection.', BACKBONE + 'patch_embed.proj.'),
        ('encoder.layer', BACKBONE + 'blocks'),
        ('layernorm.', BACKBONE + 'norm.'),
    ], _PIXIO_BLOCK)

    def recognises(self, source: Source) -> bool:
        return several_class_tokens(source.tensors.get('embeddings.cls_token'))

    def canonical(self, tensors: Tensors) -> Tensors:
        tensors = self.renamed(
            tensors, lambda name: f'encoder.layer.{name[len("layers."):]}' if name.startswith('layers.') else name)
        return super().canonical(tensors)

    def to_ours(self, tensors: Tensors) -> Tensors:
        return split_class_tokens(super().to_ours(tensors))

    def from_ours(self, tensors: Tensors) -> Tensors:
        return super().from_ours(join_class_tokens(tensors))

    def config(self, recipe: Recipe) -> Dict[str, Any]:
        model = recipe.backbone
        ratio = model.blocks[0].mlp.fc1.out_features / model.embed_dim
        config = _vit_config(model)
        return dict(
            super().config(recipe),
            **{name: value for name, value in config.items() if name != 'intermediate_size'},
            mlp_ratio=int(ratio) if ratio == int(ratio) else ratio,
            n_cls_tokens=model.num_prefix_tokens,
        )


class HuggingFaceViTMIM(_HuggingFace):
    """ViTForMaskedImageModeling."""
    name = 'huggingface-vit-mim'
    holds = 'plain vision transformers with a class token'
    method = 'simmim'
    model_type = 'vit'
    architecture = 'ViTForMaskedImageModeling'
    names = Names([
        ('vit.embeddings.mask_token', 'mask_token'),
        *_VIT_NAMES,
        ('decoder.0.', 'decoder.proj.'),
    ], _VIT_BLOCK)

    def recognises(self, source: Source) -> bool:
        return 'vit.embeddings.mask_token' in source.tensors

    def config(self, recipe: Recipe) -> Dict[str, Any]:
        stride = _one_or_pair(recipe.module.encoder_stride)
        return {**super().config(recipe), **_vit_config(recipe.backbone), 'encoder_stride': stride}


class HuggingFaceSwinMIM(_HuggingFace):
    """SwinForMaskedImageModeling. Older files also contain a constant, the relative position index."""
    name = 'huggingface-swin-mim'
    holds = 'Swin models'
    method = 'simmim'
    families = ('swin',)
    model_type = 'swin'
    architecture = 'SwinForMaskedImageModeling'
    writes_constants = False
    in_memory = _SWIN_IN_MEMORY
    names = Names([*_SWIN_NAMES, ('decoder.0.', 'decoder.proj.')], _SWIN_BLOCK)

    def recognises(self, source: Source) -> bool:
        return any(name.startswith('swin.') for name in source.tensors)

    def to_ours(self, tensors: Tensors) -> Tensors:
        return move_downsampling(super().to_ours(tensors), 1)

    def from_ours(self, tensors: Tensors) -> Tensors:
        return super().from_ours(move_downsampling(tensors, -1))

    def num_heads(self, config: Fields) -> Dict[str, Any]:
        return {}  # the tensors determine it for each stage

    def recipe_to_write(self, checkpoint: Checkpoint, hints: Hints) -> Recipe:
        recipe = super().recipe_to_write(checkpoint, hints)
        sizes = {block.window_size for layer in recipe.backbone.layers for block in layer.blocks}
        if len(sizes) > 1:
            raise ConversionError(
                f'{self.name} cannot hold this model: all windows must have the same size, but here are {len(sizes)} '
                f'sizes, because a feature map is smaller than the window.')
        return recipe

    def config(self, recipe: Recipe) -> Dict[str, Any]:
        model = recipe.backbone
        blocks = [layer.blocks[0] for layer in model.layers]
        return dict(
            super().config(recipe),
            embed_dim=model.patch_dim,
            depths=[len(layer.blocks) for layer in model.layers],
            num_heads=[block.attn.num_heads for block in blocks],
            window_size=_one_or_pair(blocks[0].window_size),
            mlp_ratio=blocks[0].mlp.fc1.out_features / model.patch_dim,
            qkv_bias=blocks[0].attn.qkv.bias is not None,
            encoder_stride=_one_or_pair(recipe.module.encoder_stride),
        )

    def constants(self, recipe: Recipe) -> Dict[str, Callable[[], torch.Tensor]]:
        return swin_position_indices(
            recipe.backbone, 'swin.encoder.', '.attention.self.relative_position_index')


def _vit_config(model: nn.Module) -> Mapping[str, Any]:
    block = model.blocks[0]
    return dict(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        qkv_bias=block.attn.qkv.bias is not None,
    )


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a value of `config.json` equals that of the model; a pair of equal numbers equals one number."""
    if isinstance(theirs, (list, tuple)) and not isinstance(ours, (list, tuple)):
        return len(theirs) > 0 and all(_same(value, ours) for value in theirs)
    if isinstance(ours, float):
        return isinstance(theirs, (int, float)) and math.isclose(theirs, ours, rel_tol=1e-3)  # hidden width / width
    return theirs == ours


def _one_or_pair(size: Any) -> Any:
    return size[0] if size[0] == size[1] else list(size)
