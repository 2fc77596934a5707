"""Hidden states and attention maps of MAE and I-JEPA, which encode visible patches only.

MAE against Hugging Face's `ViTMAEModel` at equal weights and noise; tolerance as in test_simmim_parity.py. Their
visible patches are in the order of their noise, ours in row-major order.
"""
import pytest
import torch

from hugging_face import relative_difference
from test_mae_parity import FORWARD, pair
from timm.mim import IJEPA, MIMUnsupportedError, create_mim
from timm.mim.extraction import visible_intermediates
from timm.models.vision_transformer import VisionTransformer
from tiny_models import TOKEN_DROPPING_BUILDERS, build, images_for

WITHOUT_MAPS = ('hiera',)
VIT = dict(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2.)


@torch.no_grad()
def test_mae_against_hugging_face():
    theirs, ours = pair()
    theirs.set_attn_implementation('eager')  # another makes no maps
    theirs.eval(), ours.eval()
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, ours.num_patches)
    reference = theirs.vit(images, noise=noise, output_hidden_states=True, output_attentions=True)
    mask = ours.make_mask(noise)
    assert torch.equal(mask.flatten(1), reference.mask.bool())
    found = ours.forward_intermediates(images, mask)
    kept = noise.argsort(dim=1)[:, :ours.num_visible]  # theirs, in their order
    order = kept.argsort(dim=1)
    assert torch.equal(found.visible, kept.gather(1, order))
    order = torch.cat([torch.zeros(2, 1, dtype=torch.long), order + 1], dim=1)  # class token in front

    def in_our_order(tokens):
        return tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))

    assert len(found.hidden_states) == 2 and len(reference.hidden_states) == 3  # theirs begin with the embedding
    for state, expected in zip(found.hidden_states, reference.hidden_states[1:]):
        assert relative_difference(state, in_our_order(expected)) < FORWARD
    assert relative_difference(found.features, in_our_order(reference.last_hidden_state)) < FORWARD
    maps = ours.attention_maps(images, mask)
    assert list(maps) == [f'blocks.{i}.attn.attn_drop' for i in range(2)]
    for ours_map, expected in zip(maps.values(), reference.attentions):
        queries = expected.gather(2, order[:, None, :, None].expand_as(expected))
        assert relative_difference(ours_map, queries.gather(3, order[:, None, None].expand_as(queries))) < FORWARD


@torch.no_grad()
def test_ijepa_against_the_model_on_the_context_alone():
    """A vision transformer without class token, whose blocks are run here one by one."""
    torch.manual_seed(0)
    model = VisionTransformer(**VIT, class_token=False, global_pool='avg')
    method = IJEPA(model, num_targets=2, predictor_dim=32, predictor_depth=1, predictor_heads=4).eval()
    images = torch.randn(2, 3, 64, 64)
    masks = method.make_mask(torch.rand(method.noise_shape(2)))
    found = method.forward_intermediates(images, masks)
    x = model.patch_embed(images) + model.pos_embed
    x = x.gather(1, masks.context.unsqueeze(-1).expand(-1, -1, 48))
    for block, state in zip(model.blocks, found.hidden_states):
        x = block(x)
        assert torch.equal(state, x)
    assert torch.equal(found.features, model.norm(x)) and torch.equal(found.visible, masks.context)
    first = next(iter(method.attention_maps(images, masks).values()))
    y = model.patch_embed(images) + model.pos_embed
    y = model.blocks[0].norm1(y.gather(1, masks.context.unsqueeze(-1).expand(-1, -1, 48)))
    query, key, _ = model.blocks[0].attn.qkv(y).unflatten(-1, (3, 4, 12)).permute(2, 0, 3, 1, 4)
    expected = (query @ key.transpose(-1, -2) / 12 ** 0.5).softmax(dim=-1)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize('method_name', ['mae', 'ijepa'])
@pytest.mark.parametrize('name', TOKEN_DROPPING_BUILDERS)
def test_masked_pixels_change_nothing(name, method_name):
    torch.manual_seed(0)
    options = dict(num_targets=2) if method_name == 'ijepa' else {}
    method = create_mim(method_name, build(name), img_size=(64, 96), **options).eval()
    images = images_for(method)
    mask = method.make_mask(torch.rand(method.noise_shape(len(images))))
    hole = method.pixel_mask(method.hidden_patches(method.given_mask(mask, images)))
    changed = torch.where(hole, torch.randn_like(images), images)
    found, same = method.forward_intermediates(images, mask), method.forward_intermediates(changed, mask)
    assert len(found.hidden_states) == len(method.backbone.blocks)
    for state, other in zip((found.features, *found.hidden_states), (same.features, *same.hidden_states)):
        assert torch.equal(state, other)
    if name in WITHOUT_MAPS:
        with pytest.raises(MIMUnsupportedError, match='has no attention maps'):
            method.attention_maps(images, mask)
    else:
        maps, others = method.attention_maps(images, mask), method.attention_maps(changed, mask)
        assert maps and all(torch.equal(attention, others[name]) for name, attention in maps.items())
    assert not any(module._forward_hooks for module in method.backbone.modules())


def test_model_without_a_list_of_blocks():
    with pytest.raises(MIMUnsupportedError, match='has no list of blocks'):
        visible_intermediates(torch.nn.Identity(), torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, dtype=torch.long))
