"""Infer the architecture of a model from the shapes of its tensors.

The shapes determine depths, widths, patch sizes and image sizes. They determine the number of attention heads only for
models with a relative position bias; for others it comes from hints, or from the published model of the same width.
"""
import math
import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

import torch

from .checkpoint import BACKBONE, ConversionError, Hints, Recipe, shape_text

__all__ = ['FAMILY_CLASSES', 'TensorProblem', 'count_modules', 'derive_recipe', 'family_of', 'need']

FAMILY_CLASSES = {
    'VisionTransformer': 'vit', 'Beit': 'beit', 'SwinTransformer': 'swin', 'ResNet': 'resnet', 'ConvNeXt': 'convnext'}

_INDEX = re.compile('0|[1-9][0-9]{0,5}')  # index of a module in a list of modules

# attention heads by width in the published models: ViT-Ti, S, B, L, H and g; the decoder of MAE
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_DECODER_HEADS = {512: 16}

# (width, depth, heads, hidden width, patch size, class token) of models that timm has by name
_VIT_NAMES = {
    (192, 12, 3, 768, 16, True): 'vit_tiny_patch16_224',
    (384, 12, 6, 1536, 16, True): 'vit_small_patch16_224',
    (768, 12, 12, 3072, 16, True): 'vit_base_patch16_224',
    (1024, 24, 16, 4096, 16, True): 'vit_large_patch16_224',
    (1280, 32, 16, 5120, 14, True): 'vit_huge_patch14_224',
    (1280, 32, 16, 5120, 14, False): 'vit_huge_patch14_gap_224',
    (1280, 32, 16, 5120, 16, False): 'vit_huge_patch16_gap_448',
    (1408, 40, 16, 6144, 16, False): 'vit_giant_patch16_gap_224',
}
_NO_CLASS_TOKEN = dict(class_token=False, global_pool='avg', fc_norm=False)
# (width, depths) of Swin models that timm has by name
_SWIN_NAMES = {
    (96, (2, 2, 6, 2)): 'swin_tiny_patch4_window7_224',
    (96, (2, 2, 18, 2)): 'swin_small_patch4_window7_224',
    (128, (2, 2, 18, 2)): 'swin_base_patch4_window7_224',
    (192, (2, 2, 18, 2)): 'swin_large_patch4_window7_224',
}


class TensorProblem(Exception):
    """Raised when a tensor that determines a size of the model is missing or has an impossible shape.

    Args:
        name: Our name of the tensor.
        problem: What is wrong with the tensor.
        detail: Details, written after the name.
    """

    def __init__(self, name: str, problem: str, detail: str = '') -> None:
        super().__init__(name, problem, detail)
        self.name, self.problem, self.detail = name, problem, detail

    def message(self, name: str) -> str:
        """Return the error message, with the name that the tensor has in its file."""
        return f'{self.problem}: {name}{self.detail}'


class _Model(NamedTuple):
    name: str
    img_size: Tuple[int, int]
    kwargs: Dict[str, Any]
    stride: Tuple[int, int]  # of a patch


def family_of(tensors: Mapping[str, Any]) -> Optional[str]:
    """Return the family of a backbone, 'vit', 'beit', 'swin' or None for others, from our names of its tensors."""
    if BACKBONE + 'layers.0.blocks.0.attn.relative_position_bias_table' in tensors:
        return 'swin'
    if any(name.endswith(('.q_bias', '.gamma_1', '.relative_position_bias_table')) for name in tensors):
        return 'beit'
    return 'vit' if BACKBONE + 'blocks.0.mlp.fc1.weight' in tensors else None


def derive_recipe(
        tensors: Mapping[str, torch.Tensor],
        method: Optional[str],
        family: str,
        hints: Hints,
        class_token: bool,
        registers: bool = False,
) -> Recipe:
    """Return how to build the module that tensors belong to.

    Args:
        tensors: Tensors by our names.
        method: Name of the method, None for a plain backbone.
        family: Family of the backbone, see `family_of`.
        hints: Information besides the tensors.
        class_token: Whether a plain vision transformer has a class token.
        registers: Whether a plain vision transformer has register tokens, which have positions like the class token.

    Raises:
        TensorProblem: A tensor that determines a size is missing, or has the wrong number of dimensions.
        ConversionError: A value follows neither from the tensors nor from the hints.
    """
    if hints.model is not None:
        return Recipe(method, hints.model, hints.img_size, hints.model_kwargs, _options(tensors, method, hints))
    if family == 'vit':
        model = _vit(tensors, hints, class_token, registers)
    else:
        model = (_beit if family == 'beit' else _swin)(tensors, hints)
    options = _options(tensors, method, hints)
    if method == 'simmim' and 'mask_unit' not in options and not _takes_unit(model, 32):
        options['mask_unit'] = model.stride[0] if model.stride[0] == model.stride[1] else model.stride
    given = dict(hints.model_kwargs)
    if family == 'vit':
        given.pop('num_heads', None)  # `model` contains it already
    return Recipe(method, model.name, model.img_size, {**model.kwargs, **given}, options)


def _options(tensors: Mapping[str, torch.Tensor], method: Optional[str], hints: Hints) -> Dict[str, Any]:
    options = {}
    if method == 'mae':
        width = need(tensors, 'decoder.mask_token', 3).shape[-1]
        options.update(decoder_dim=width, decoder_depth=count_modules(tensors, 'decoder.blocks.'))
        if 'decoder_heads' not in hints.options and width not in _DECODER_HEADS:
            raise _unknown_heads('decoder', width, '--mim-kwargs decoder_heads=NUMBER')
        options['decoder_heads'] = _DECODER_HEADS.get(width)
    if method == 'ijepa':
        options.update(
            predictor_dim=need(tensors, 'predictor.mask_token', 3).shape[-1],
            predictor_depth=count_modules(tensors, 'predictor.blocks.'),
        )
    return {**options, **hints.options}


def _vit(tensors: Mapping[str, torch.Tensor], hints: Hints, class_token: bool, registers: bool = False) -> _Model:
    width, in_chans, *patch_size = need(tensors, BACKBONE + 'patch_embed.proj.weight', 4).shape
    depth, hidden = count_modules(tensors, BACKBONE + 'blocks.'), _hidden(tensors)
    heads = _num_heads(hints, width)
    kwargs = {} if in_chans == 3 else dict(in_chans=in_chans)
    if BACKBONE + 'blocks.0.attn.qkv.bias' not in tensors:
        kwargs['qkv_bias'] = False
    name = _VIT_NAMES.get((width, depth, heads, hidden, _one_or_pair(patch_size), class_token))
    if name is None:
        name = 'vit_base_patch16_224'
        kwargs.update(_size_kwargs(width, depth, heads, hidden, patch_size))
        kwargs.update({} if class_token else _NO_CLASS_TOKEN)
    num_registers = need(tensors, BACKBONE + 'reg_token', 3).shape[1] if registers else 0
    if registers:
        kwargs['reg_tokens'] = num_registers
    num_patches = _num_positions(tensors, class_token + num_registers)
    return _Model(name, hints.img_size or _square(num_patches, patch_size), kwargs, tuple(patch_size))


def _beit(tensors: Mapping[str, torch.Tensor], hints: Hints) -> _Model:
    width, in_chans, *patch_size = need(tensors, BACKBONE + 'patch_embed.proj.weight', 4).shape
    depth, hidden = count_modules(tensors, BACKBONE + 'blocks.'), _hidden(tensors)
    shared, own = 'rel_pos_bias.relative_position_bias_table', 'blocks.0.attn.relative_position_bias_table'
    has_shared, has_own = BACKBONE + shared in tensors, BACKBONE + own in tensors
    if has_shared or has_own:
        name = BACKBONE + (shared if has_shared else own)
        distances, heads = need(tensors, name, 2).shape
        if distances < 4:
            raise TensorProblem(name, 'of too few distances', f' ({distances}, at least 4 are needed)')
        # (2 h - 1) (2 w - 1) offsets between patches, and three entries for pairs with the class token
        num_patches = ((math.isqrt(distances - 3) + 1) // 2) ** 2
    else:
        heads = _num_heads(hints, width)
        num_patches = _num_positions(tensors, True)
    kwargs = dict(
        use_abs_pos_emb=BACKBONE + 'pos_embed' in tensors,
        use_rel_pos_bias=has_own,
        use_shared_rel_pos_bias=has_shared,
        init_values=0.1 if BACKBONE + 'blocks.0.gamma_1' in tensors else 0.,  # timm drops an argument that is None
        qkv_bias=BACKBONE + 'blocks.0.attn.q_bias' in tensors,
        use_fc_norm=BACKBONE + 'fc_norm.weight' in tensors,
    )
    kwargs.update(_size_kwargs(width, depth, heads, hidden, patch_size))
    kwargs.update({} if in_chans == 3 else dict(in_chans=in_chans))
    img_size = hints.img_size or _square(num_patches, patch_size)
    return _Model('beit_base_patch16_224', img_size, kwargs, tuple(patch_size))


def _swin(tensors: Mapping[str, torch.Tensor], hints: Hints) -> _Model:
    width, in_chans, *patch_size = need(tensors, BACKBONE + 'patch_embed.proj.weight', 4).shape
    num_stages = count_modules(tensors, BACKBONE + 'layers.', 'blocks.0.norm1.weight')
    stages = [f'{BACKBONE}layers.{stage}.blocks.' for stage in range(num_stages)]
    depths = tuple(count_modules(tensors, stage) for stage in stages)
    tables = [need(tensors, stage + '0.attn.relative_position_bias_table', 2).shape for stage in stages]
    hidden = need(tensors, stages[0] + '0.mlp.fc1.weight', 2).shape[0]
    # in stages whose map is smaller than the window, the window has the size of the map
    kwargs = dict(window_size=max((math.isqrt(size) + 1) // 2 for size, _ in tables))
    heads = tuple(heads for _, heads in tables)
    name = _SWIN_NAMES.get((width, depths))
    if name is None or _one_or_pair(patch_size) != 4 or hidden != 4 * width or heads[0] != width // 32:
        name = 'swin_tiny_patch4_window7_224'
        kwargs.update(
            embed_dim=width, depths=depths, num_heads=heads, patch_size=_one_or_pair(patch_size),
            mlp_ratio=_ratio(hidden, width))
    kwargs.update({} if in_chans == 3 else dict(in_chans=in_chans))
    if stages[0] + '0.attn.qkv.bias' not in tensors:
        kwargs['qkv_bias'] = False
    if hints.img_size is None:
        raise ConversionError('The tensors of a Swin model do not determine the image size: give it with --img-size.')
    return _Model(name, hints.img_size, kwargs, tuple(patch_size))


def _size_kwargs(width: int, depth: int, heads: int, hidden: int, patch_size: Tuple[int, int]) -> Dict[str, Any]:
    kwargs = dict(patch_size=_one_or_pair(patch_size), embed_dim=width, depth=depth, num_heads=heads)
    return kwargs if hidden == 4 * width else dict(kwargs, mlp_ratio=_ratio(hidden, width))


def _hidden(tensors: Mapping[str, torch.Tensor]) -> int:
    return need(tensors, BACKBONE + 'blocks.0.mlp.fc1.weight', 2).shape[0]


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio for which timm's formula int(width * ratio) gives the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _square(num_patches: int, patch_size: Tuple[int, int]) -> Tuple[int, int]:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ConversionError(
            f'{num_patches} patches do not form a square, so the tensors do not determine the image size: give it with '
            f'--img-size HEIGHT WIDTH.')
    return side * patch_size[0], side * patch_size[1]


def _takes_unit(model: _Model, unit: int) -> bool:
    """Whether a mask unit consists of whole patches and divides the image size into more than two units."""
    fits = not any(size % unit or unit % stride for size, stride in zip(model.img_size, model.stride))
    return fits and math.prod(size // unit for size in model.img_size) > 2


def _one_or_pair(size: Tuple[int, int]) -> Any:
    return size[0] if size[0] == size[1] else tuple(size)


def count_modules(tensors: Mapping[str, Any], prefix: str, first: str = 'norm1.weight') -> int:
    """Return the length of a list of modules, from the highest index."""
    indices = {name[len(prefix):].split('.')[0] for name in tensors if name.startswith(prefix)}
    count = 1 + max((int(index) for index in indices if _INDEX.fullmatch(index)), default=-1)
    if count == 0:
        raise TensorProblem(f'{prefix}0.{first}', 'missing')
    if count > len(tensors):  # each module has a tensor; a forged index would build modules for minutes
        names = [name for name in tensors if name.startswith(f'{prefix}{count - 1}')]
        raise TensorProblem(names[0], 'with an index above the number of tensors', f' ({len(tensors)})')
    return count


def _num_positions(tensors: Mapping[str, torch.Tensor], num_prefix_tokens: int) -> int:
    """Return the number of patches that have a position embedding."""
    name = BACKBONE + 'pos_embed'
    positions = need(tensors, name, 3).shape[1]
    if positions <= num_prefix_tokens:
        raise TensorProblem(
            name, 'without patches', f' ({positions} positions, {num_prefix_tokens} of them for class tokens)')
    return positions - num_prefix_tokens


def _num_heads(hints: Hints, width: int) -> int:
    heads = hints.model_kwargs.get('num_heads', _HEADS.get(width))
    if heads is None:
        raise _unknown_heads('encoder', width, '--model-kwargs num_heads=NUMBER, or name the model with --model NAME')
    if not isinstance(heads, int) or heads < 1:
        raise ConversionError(f'num_heads must be an integer of 1 or more, got {heads!r}.')
    return heads


def need(tensors: Mapping[str, torch.Tensor], name: str, ndim: int) -> torch.Tensor:
    """Return the tensor of a name, and check that it has `ndim` dimensions, none of them empty."""
    if name not in tensors:
        raise TensorProblem(name, 'missing')
    tensor = tensors[name]
    if tensor.ndim != ndim or 0 in tensor.shape:
        raise TensorProblem(
            name, 'of another shape', f' ({shape_text(tensor)}, not {ndim} dimensions of length 1 or more)')
    return tensor


def _unknown_heads(of: str, width: int, flag: str) -> ConversionError:
    return ConversionError(
        f'The tensors do not determine the number of attention heads of the {of} of width {width}: give it with '
        f'{flag}.')
