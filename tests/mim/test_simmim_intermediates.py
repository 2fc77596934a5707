"""Hidden states, attention maps and other image sizes, against Hugging Face's `ViTForMaskedImageModeling`.

Same weights, same mask, float32, tolerances as in `test_simmim_parity`. One thing of theirs is not ours: they resize
positions by bicubic interpolation, timm by bicubic interpolation with antialiasing, whose kernel is another one also
where positions become more (a = -0.5 in place of -0.75). Their loss takes masks of the size in the configuration only,
which is set to that of the images here.
"""
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hugging_face import relative_difference
from test_simmim_parity import FORWARD, our_tensors, swin_pair, vit_pair
from timm.mim import MIMUnsupportedError, SimMIM
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from tiny_models import BUILDERS, build, images_for

transformers = pytest.importorskip('transformers')


def randomized_pair(pair, dynamic=False):
    torch.manual_seed(0)
    theirs, ours, names = pair(3)
    if dynamic:
        ours = SimMIM(VisionTransformer(
            img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2., dynamic_img_size=True),
            mask_unit=16)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours.load_state_dict(our_tensors(theirs.state_dict(), names), strict=False)
    theirs.set_attn_implementation('eager')  # another makes no maps
    return theirs.eval(), ours.eval()


def some_mask(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) < 0.5


@torch.no_grad()
def test_hidden_states_and_attention_maps_of_a_vit():
    theirs, ours = randomized_pair(vit_pair)
    images, mask = torch.randn(2, 3, 64, 64), some_mask(2, 4, 4)
    reference = theirs(images, bool_masked_pos=mask.flatten(1), output_hidden_states=True, output_attentions=True)
    features, states = ours.forward_intermediates(images, mask, output_fmt='NLC', return_prefix_tokens=True)
    assert len(states) == 3 and len(reference.hidden_states) == 4  # theirs begin with the embedding
    for (patches, prefix), expected in zip(states, reference.hidden_states[1:]):
        assert relative_difference(torch.cat([prefix, patches], 1), expected) < FORWARD
    maps = ours.attention_maps(images, mask)
    assert list(maps) == [f'blocks.{i}.attn.attn_drop' for i in range(3)]
    for ours_map, expected in zip(maps.values(), reference.attentions):
        assert ours_map.shape == (2, 4, 17, 17)
        assert relative_difference(ours_map, expected) < FORWARD


@torch.no_grad()
def test_attention_maps_of_a_swin():
    theirs, ours = randomized_pair(swin_pair)
    images, mask = torch.randn(2, 3, 64, 64), some_mask(2, 16, 16)
    reference = theirs(images, bool_masked_pos=mask.flatten(1), output_hidden_states=True, output_attentions=True)
    _, states = ours.forward_intermediates(images, mask)
    assert relative_difference(states[-1], reference.reshaped_hidden_states[-1]) < FORWARD
    maps = list(ours.attention_maps(images, mask).values())
    assert [tuple(m.shape) for m in maps] == [(32, 2, 16, 16)] * 2 + [(8, 4, 16, 16)] * 2 + [(2, 4, 16, 16)]
    assert relative_difference(maps[-1], reference.attentions[-1]) < FORWARD


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in BUILDERS if name != 'swin'])
def test_last_hidden_state_is_what_is_decoded(name):
    method = SimMIM(build(name), mask_unit=16).eval()
    images, grid = images_for(method), [size // stride for size, stride in zip(method.img_size, method.patch_stride)]
    mask = some_mask(2, *grid)
    features, _ = method.forward_intermediates(images, mask)
    feature_map = method.backbone.features_to_map(features, grid)
    assert torch.equal(method.decoder(feature_map), method.reconstruct(images, mask))
    other = torch.where(method.pixel_mask(mask), torch.randn_like(images), images)
    for state, same in zip(method.forward_intermediates(images, mask, intermediates_only=True),
                           method.forward_intermediates(other, mask, intermediates_only=True)):
        assert torch.equal(state, same)  # what is masked is not seen


def test_leave_no_trace():
    method = SimMIM(build('vit'), mask_unit=16).train()
    images, mask = images_for(method), some_mask(2, 4, 6)
    modes = [module.training for module in method.modules()]
    for attention in (block.attn for block in method.backbone.blocks):
        attention.fused_attn = True
    for _ in range(2):
        maps = method.attention_maps(images, mask)
        torch.testing.assert_close([m.sum(-1) for m in maps.values()], [torch.ones(2, 2, 25)] * 2)
        method.forward_intermediates(images, mask)
    assert [module.training for module in method.modules()] == modes
    assert all(block.attn.fused_attn for block in method.backbone.blocks)
    assert not any(module._forward_hooks for module in method.modules())


def test_models_without():
    hiera = SimMIM(build('hiera'), img_size=(64, 96), mask_unit=32)
    for call in (hiera.forward_intermediates, hiera.attention_maps):
        with pytest.raises(MIMUnsupportedError, match='^Hiera cannot return hidden states or attention maps of masked'):
            call(images_for(hiera), some_mask(2, *hiera._patch_grid((64, 96))))


def resized(theirs, size):
    theirs.config.image_size = size
    return theirs


@pytest.mark.parametrize('size', [96, 48])
def test_another_image_size(size, monkeypatch):
    """With their interpolation of positions in the place of timm's, all else is equal."""
    theirs, ours = randomized_pair(vit_pair, dynamic=True)
    monkeypatch.setattr(vision_transformer, 'resample_abs_pos_embed', partial(
        vision_transformer.resample_abs_pos_embed, antialias=False))
    images, mask = torch.randn(2, 3, size, size), some_mask(2, size // 16, size // 16)
    output = ours(images, mask=mask)
    reference = resized(theirs, size)(images, bool_masked_pos=mask.flatten(1), interpolate_pos_encoding=True)
    assert relative_difference(output.prediction, reference.reconstruction) < FORWARD
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD


@torch.no_grad()
def test_difference_of_the_interpolation():
    theirs, ours = randomized_pair(vit_pair, dynamic=True)
    images, mask = torch.randn(2, 3, 96, 96), some_mask(2, 6, 6)
    prediction = ours.reconstruct(images, mask)
    reference = resized(theirs, 96)(images, bool_masked_pos=mask.flatten(1), interpolate_pos_encoding=True)
    assert 1e-4 < relative_difference(prediction, reference.reconstruction) < 0.2
    # it is all in the positions: theirs with timm's
    table = theirs.vit.embeddings.position_embeddings
    patches = table[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(6, 6), mode='bicubic', antialias=True).permute(0, 2, 3, 1).reshape(1, 36, 48)
    theirs.vit.embeddings.interpolate_pos_encoding = lambda *args: torch.cat([table[:, :1], patches], 1)
    reference = theirs(images, bool_masked_pos=mask.flatten(1), interpolate_pos_encoding=True)
    assert relative_difference(prediction, reference.reconstruction) < FORWARD


@torch.no_grad()
def test_another_image_size_that_is_not_square():
    """Theirs reconstructs squares only. The same weights in a model that is built for the size."""
    _, ours = randomized_pair(vit_pair, dynamic=True)
    model = VisionTransformer(
        img_size=(96, 64), patch_size=16, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2., num_classes=0)
    state = ours.backbone.state_dict()
    patches = state['pos_embed'][:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(6, 4), mode='bicubic', antialias=True).permute(0, 2, 3, 1).reshape(1, 24, 48)
    model.load_state_dict({**state, 'pos_embed': torch.cat([state['pos_embed'][:, :1], patches], 1)})
    built = SimMIM(model, mask_unit=16).eval()
    built.decoder, built.mask_token = ours.decoder, ours.mask_token
    images, mask = torch.randn(2, 3, 96, 64), some_mask(2, 6, 4)
    torch.testing.assert_close(ours.reconstruct(images, mask), built.reconstruct(images, mask), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours(images, mask=mask).loss, ours(images, mask=mask.flatten(1)).loss)
