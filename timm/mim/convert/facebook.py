"""Formats of facebookresearch/mae and facebookresearch/ijepa.

The tensor names are those of `models_mae.py` (MAE) and `src/models/vision_transformer.py` (I-JEPA).
"""
from typing import Any, Dict

from .checkpoint import BACKBONE, Hints, Tensors
from .files import Source
from .foreign import ForeignFormat, Names

__all__ = ['FacebookIJEPA', 'FacebookMAE']


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
        whole = any(name.startswith('decoder_blocks.') for name in source.tensors)
        return whole or (source.layout == 'model' and 'blocks.0.norm1.weight' in source.tensors)

    def hints(self, source: Source) -> Hints:
        """Read options of MAE from the arguments that `main_pretrain.py` saves; released files do not contain them."""
        args = source.arguments()
        options = dict(norm_pix=args.flag('norm_pix_loss'), mask_ratio=args.fraction('mask_ratio') or None)
        return Hints(options={name: value for name, value in options.items() if value is not None})


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
