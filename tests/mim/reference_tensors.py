"""Names and shapes of tensors in checkpoints of the papers' code, which cannot be installed.

Written down from facebookresearch/mae (models_mae.py), facebookresearch/ijepa (src/models/vision_transformer.py, and
src/train.py for the dictionaries) and microsoft/SimMIM (models/simmim.py, vision_transformer.py, swin_transformer.py).
"""
import torch


def linear(name, outputs, inputs):
    return {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}


def norm(name, width):
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def block(name, width, hidden):
    return {
        **norm(f'{name}.norm1', width),
        **linear(f'{name}.attn.qkv', 3 * width, width),
        **linear(f'{name}.attn.proj', width, width),
        **norm(f'{name}.norm2', width),
        **linear(f'{name}.mlp.fc1', hidden, width),
        **linear(f'{name}.mlp.fc2', width, hidden),
    }


def patch_embed(name, width, in_chans, patch):
    return {f'{name}.proj.weight': (width, in_chans, patch, patch), f'{name}.proj.bias': (width,)}


def fill(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def shapes_only(shapes, seed=0):
    return {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}


def facebook_mae(width=48, depth=2, decoder_width=32, decoder_depth=1, patches=16, patch=8, in_chans=3, encoder=False,
                 fill=fill):
    shapes = {
        'cls_token': (1, 1, width),
        'pos_embed': (1, patches + 1, width),
        **patch_embed('patch_embed', width, in_chans, patch),
        **norm('norm', width),
    }
    for i in range(depth):
        shapes.update(block(f'blocks.{i}', width, 4 * width))
    if not encoder:
        shapes.update({
            'mask_token': (1, 1, decoder_width),
            'decoder_pos_embed': (1, patches + 1, decoder_width),
            **linear('decoder_embed', decoder_width, width),
            **norm('decoder_norm', decoder_width),
            **linear('decoder_pred', patch * patch * in_chans, decoder_width),
        })
        for i in range(decoder_depth):
            shapes.update(block(f'decoder_blocks.{i}', decoder_width, 4 * decoder_width))
    return fill(shapes)


def facebook_ijepa(width=52, depth=2, hidden=60, predictor_width=24, predictor_depth=2, patches=36, patch=8,
                   fill=fill):
    encoder = {
        'pos_embed': (1, patches, width),
        **patch_embed('patch_embed', width, 3, patch),
        **norm('norm', width),
    }
    for i in range(depth):
        encoder.update(block(f'blocks.{i}', width, hidden))
    predictor = {
        'mask_token': (1, 1, predictor_width),
        'predictor_pos_embed': (1, patches, predictor_width),
        **linear('predictor_embed', predictor_width, width),
        **norm('predictor_norm', predictor_width),
        **linear('predictor_proj', width, predictor_width),
    }
    for i in range(predictor_depth):
        predictor.update(block(f'predictor_blocks.{i}', predictor_width, 4 * predictor_width))
    parts = dict(encoder=fill(encoder, 0), predictor=fill(predictor, 1), target_encoder=fill(encoder, 2))
    return {part: {f'module.{name}': t for name, t in tensors.items()} for part, tensors in parts.items()}


def microsoft_vit(width=48, depth=2, heads=4, grid=4, patch=8, shared=True, positions=False, layer_scale=True,
                  fill=fill):
    distances = (2 * grid - 1) ** 2 + 3
    shapes = {
        'encoder.cls_token': (1, 1, width),
        'encoder.mask_token': (1, 1, width),
        **patch_embed('encoder.patch_embed', width, 3, patch),
        **norm('encoder.norm', width),
        'decoder.0.weight': (patch * patch * 3, width, 1, 1),
        'decoder.0.bias': (patch * patch * 3,),
    }
    constants = {}
    if positions:
        shapes['encoder.pos_embed'] = (1, grid * grid + 1, width)
    if shared:
        shapes['encoder.rel_pos_bias.relative_position_bias_table'] = (distances, heads)
        constants['encoder.rel_pos_bias.relative_position_index'] = class_token_index(grid)
    for i in range(depth):
        name = f'encoder.blocks.{i}'
        shapes.update(block(name, width, 4 * width))
        del shapes[f'{name}.attn.qkv.bias']
        shapes.update({f'{name}.attn.q_bias': (width,), f'{name}.attn.v_bias': (width,)})
        if layer_scale:
            shapes.update({f'{name}.gamma_1': (width,), f'{name}.gamma_2': (width,)})
        if not shared:
            shapes[f'{name}.attn.relative_position_bias_table'] = (distances, heads)
            constants[f'{name}.attn.relative_position_index'] = class_token_index(grid)
    return {**fill(shapes), **constants}


def microsoft_swin(width=16, depths=(2, 2, 1), heads=(2, 4, 4), window=4, size=64, patch=4, fill=fill):
    shapes = {
        'encoder.mask_token': (1, 1, width),
        **patch_embed('encoder.patch_embed', width, 3, patch),
        **norm('encoder.patch_embed.norm', width),
        **norm('encoder.norm', width * 2 ** (len(depths) - 1)),
    }
    stride = patch * 2 ** (len(depths) - 1)
    shapes['decoder.0.weight'] = (stride * stride * 3, width * 2 ** (len(depths) - 1), 1, 1)
    shapes['decoder.0.bias'] = (stride * stride * 3,)
    constants = {}
    for stage, depth in enumerate(depths):
        side, dim = size // patch // 2 ** stage, width * 2 ** stage
        stage_window = min(side, window)
        for i in range(depth):
            name = f'encoder.layers.{stage}.blocks.{i}'
            shapes.update(block(name, dim, 4 * dim))
            shapes[f'{name}.attn.relative_position_bias_table'] = ((2 * stage_window - 1) ** 2, heads[stage])
            constants[f'{name}.attn.relative_position_index'] = window_index(stage_window)
            if i % 2 and side > window:
                constants[f'{name}.attn_mask'] = shifted_window_mask(side, window)
        if stage < len(depths) - 1:
            name = f'encoder.layers.{stage}.downsample'
            shapes.update({f'{name}.reduction.weight': (2 * dim, 4 * dim), **norm(f'{name}.norm', 4 * dim)})
    return {**fill(shapes), **constants}


def window_index(side):
    """Number of the distance between any two places of a window."""
    places = [(y, x) for y in range(side) for x in range(side)]
    return torch.tensor([
        [(y - v + side - 1) * (2 * side - 1) + x - u + side - 1 for v, u in places] for y, x in places])


def class_token_index(side):
    """The same, with a class token in front: three distances more, to patches, from patches, to itself."""
    distances = (2 * side - 1) ** 2
    index = torch.empty(side * side + 1, side * side + 1, dtype=torch.int64)
    index[1:, 1:] = window_index(side)
    index[0, :], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    return index


def shifted_window_mask(side, window):
    """-100 between places of a shifted window that were not neighbours before the shift."""
    def region(i):
        return 0 if i < side - window else 1 if i < side - window // 2 else 2

    masks = []
    for top in range(0, side, window):
        for left in range(0, side, window):
            regions = [
                (region(y), region(x)) for y in range(top, top + window) for x in range(left, left + window)]
            masks.append([[0. if a == b else -100. for b in regions] for a in regions])
    return torch.tensor(masks)
