"""Formats of facebookresearch/mae, facebookresearch/pixio and facebookresearch/ijepa.

The tensor names are those of `models_mae.py` (MAE), `models_pixio.py` (Pixio), and `src/models/vision_transformer.py`
(I-JEPA).
"""
from typing import Any, Dict

import torch

from .checkpoint import BACKBONE, Hints, Tensors
from .files import Source
from .foreign import ForeignFormat, Names

__all__ = ['FacebookIJEPA', 'FacebookMAE', 'FacebookPixio', 'join_class_tokens', 'several_class_tokens',
           'split_class_tokens']


class FacebookMAE(ForeignFormat):
    """MAE: a file with a dictionary `model`. The released encoders have no decoder."""
    name = 'facebook-mae'
    holds = 'plain vision transformers with a class token'
    method = 'mae'
    encoder_alone = True
    names = Names([
        ('decoder_blocks.', 'decoder.blocks.'),
        ('decoder_norm.', 'decoder.norm.'),
        ('decoder_pos_embed', 'decoder.pos_embed'),
        ('mask_token', 'decoder.mask_token'),
        ('decoder_embed.', 'decoder_embed.'),
        ('decoder_pred.', 'decoder_pred.'),
        ('', BACKBONE),
    ])

    def recognises(self, source: Source) -> bool:
        if several_class_tokens(source.tensors.get('cls_token')):
            return False
        whole = any(name.startswith('decoder_blocks.') for name in source.tensors)
        return whole or (source.layout == 'model' and 'blocks.0.norm1.weight' in source.tensors)

    def hints(self, source: Source) -> Hints:
        """Read options of MAE from the arguments that `main_pretrain.py` saves; released files do not contain them."""
        args = source.arguments()
        options = dict(norm_pix=args.flag('norm_pix_loss'), mask_ratio=args.fraction('mask_ratio') or None)
        return Hints(options={name: value for name, value in options.items() if value is not None})


def several_class_tokens(token: Any) -> bool:
    """Whether a tensor `cls_token` (1, T, D) holds several class tokens, as in Pixio."""
    return isinstance(token, torch.Tensor) and token.ndim == 3 and token.shape[1] > 1


def split_class_tokens(tensors: Tensors) -> Tensors:
    """Split several class tokens into timm's class token and its register tokens."""
    tensors = dict(tensors)
    token = tensors.get(BACKBONE + 'cls_token')
    if several_class_tokens(token):
        tensors[BACKBONE + 'cls_token'], tensors[BACKBONE + 'reg_token'] = token[:, :1], token[:, 1:]
    return tensors


def join_class_tokens(tensors: Tensors) -> Tensors:
    """Join timm's class token and its register tokens."""
    tensors = dict(tensors)
    if BACKBONE + 'reg_token' in tensors and BACKBONE + 'cls_token' in tensors:
        parts = tensors[BACKBONE + 'cls_token'], tensors.pop(BACKBONE + 'reg_token')
        tensors[BACKBONE + 'cls_token'] = torch.cat(parts, dim=1)
    return tensors


class FacebookPixio(FacebookMAE):
    """Pixio: MAE with several class tokens, learned positions in the decoder, and mask units of 4 x 4 patches.

    The class tokens become timm's class token and its register tokens.
    """
    name = 'facebook-pixio'
    holds = 'plain vision transformers with a class token and register tokens that have positions'
    registers = True

    def recognises(self, source: Source) -> bool:
        return several_class_tokens(source.tensors.get('cls_token'))

    def hints(self, source: Source) -> Hints:
        """Read options from arguments that the file may hold, and assume the mask units of the paper."""
        hints = super().hints(source)
        patch = source.tensors.get('patch_embed.proj.weight')
        options: Dict[str, Any] = dict(decoder_pos_embed='learn')
        if isinstance(patch, torch.Tensor) and patch.ndim == 4:
            options['mask_unit'] = tuple(4 * side for side in patch.shape[2:])
        return hints._replace(options={**options, **hints.options})

    def to_ours(self, tensors: Tensors) -> Tensors:
        return split_class_tokens(super().to_ours(tensors))

    def from_ours(self, tensors: Tensors) -> Tensors:
        return super().from_ours(join_class_tokens(tensors))


class FacebookIJEPA(ForeignFormat):
    """I-JEPA: a file with dictionaries `encoder`, `predictor` and `target_encoder`, of DistributedDataParallel modules.
    """
    name = 'facebook-ijepa'
    holds = 'plain vision transformers without a class token'
    method = 'ijepa'
    class_token = False
    names = Names([
        ('encoder.', BACKBONE),
        ('target_encoder.', 'target_encoder.'),
        ('predictor.predictor_embed.', 'predictor_embed.'),
        ('predictor.predictor_proj.', 'predictor_proj.'),
        ('predictor.predictor_pos_embed', 'predictor.pos_embed'),
        ('predictor.predictor_blocks.', 'predictor.blocks.'),
        ('predictor.predictor_norm.', 'predictor.norm.'),
        ('predictor.mask_token', 'predictor.mask_token'),
    ])

    def recognises(self, source: Source) -> bool:
        return source.layout == 'ijepa' or any(name.startswith('predictor.predictor_') for name in source.tensors)

    def wrap(self, tensors: Tensors) -> Dict[str, Any]:
        content: Dict[str, Tensors] = {'encoder': {}, 'predictor': {}, 'target_encoder': {}}
        for name, tensor in tensors.items():
            part, name = name.split('.', 1)
            content[part][f'module.{name}'] = tensor
        return content
