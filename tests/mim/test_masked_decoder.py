"""MaskedDecoder against lightly's decoder with the same weights, and against what it says of itself."""
import math

import pytest
import torch
from torch.utils._pytree import tree_map

from timm.mim import MaskedDecoder, sincos_position_embedding

# both sides are timm's blocks on the same numbers; sums may run in another order
TOLERANCE = dict(rtol=1e-5, atol=1e-6)


def decoder(grid_size=(4, 4), num_prefix_tokens=1, **kwargs):
    torch.manual_seed(0)
    kwargs = {**dict(embed_dim=32, depth=2, num_heads=4), **kwargs}
    model = MaskedDecoder(grid_size, num_prefix_tokens=num_prefix_tokens, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tokens_for(model, batch_size=3, seed=1):
    num_tokens = model.num_prefix_tokens + model.num_patches
    return torch.randn(
        batch_size, num_tokens, model.mask_token.shape[-1], generator=torch.Generator().manual_seed(seed))


def some_places(model, count, batch_size=3, seed=2):
    noise = torch.rand(batch_size, model.num_patches, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(1)[:, :count]


@pytest.fixture(scope='module')
def lightly():
    return pytest.importorskip('lightly.models.modules.masked_vision_transformer_decoder_timm')


@pytest.mark.parametrize('num_prefix_tokens', [0, 1, 5])
def test_lightly_outputs(lightly, num_prefix_tokens):
    torch.manual_seed(0)
    theirs = lightly.MaskedVisionTransformerDecoderTIMM(
        num_patches=16, embed_dim=32, depth=2, num_heads=4, num_prefix_tokens=num_prefix_tokens).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = decoder(num_prefix_tokens=num_prefix_tokens)
    # our positions are computed, not copied; theirs stand in float64 up to the last step too
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed.data, rtol=0, atol=1e-7)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are the same

    x = tokens_for(ours)
    masked, kept = some_places(ours, 6), some_places(ours, 9, seed=3)
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(4)) < 0.5
    # their indices and masks count prefix tokens, and drop those that are not named
    prefix = torch.arange(num_prefix_tokens).expand(3, -1)

    def with_prefix(indices):
        return torch.cat([prefix, indices + num_prefix_tokens], 1)

    their_mask = torch.cat([torch.zeros_like(prefix, dtype=torch.bool), mask], 1)
    for our_call, their_call in [
        (dict(), dict()),
        (dict(idx_mask=masked), dict(idx_mask=masked + num_prefix_tokens)),
        (dict(mask=mask), dict(mask=their_mask)),
        (dict(idx_keep=kept), dict(idx_keep=with_prefix(kept))),
        (dict(idx_keep=kept, idx_mask=masked), dict(idx_keep=with_prefix(kept), idx_mask=masked + num_prefix_tokens)),
        (dict(idx_keep=kept, mask=mask), dict(idx_keep=with_prefix(kept), mask=their_mask)),
    ]:
        torch.testing.assert_close(ours(x, **our_call), theirs(x, **their_call), **TOLERANCE)


def test_lightly_predictor(lightly):
    """Their I-JEPA predictor goes around the forward of their decoder, ours goes through it."""
    predictors = pytest.importorskip('lightly.models.modules.ijepa_timm')
    torch.manual_seed(0)
    theirs = predictors.IJEPAPredictorTIMM(
        num_patches=16, depth=2, mlp_dim=24, predictor_embed_dim=32, num_heads=4).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = decoder(num_prefix_tokens=0)
    ours.load_state_dict(theirs.decoder.state_dict())

    places = some_places(ours, 11)
    context, targets = places[:, :7], places[:, 7:]
    x = torch.randn(3, 7, 24)
    grid = torch.zeros(3, 16, 32)
    grid[torch.arange(3).unsqueeze(1), context] = theirs.predictor_embed(x).detach()
    output = ours(grid, idx_keep=places, idx_mask=targets)[:, 7:]
    torch.testing.assert_close(
        theirs.predictor_proj(output), theirs(x, masks_x=context, masks=targets), **TOLERANCE)


@pytest.mark.parametrize('height, width, dim', [(2, 3, 8), (5, 5, 16), (7, 2, 4)])
def test_sincos_positions_channel_by_channel(height, width, dim):
    table = sincos_position_embedding((height, width), dim).view(height, width, dim)
    quarter = dim // 4
    for row in range(height):
        for column in range(width):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                expected = [
                    math.sin(column * omega), math.cos(column * omega), math.sin(row * omega), math.cos(row * omega)]
                # float32 has 24 bits
                assert table[row, column, k::quarter].tolist() == pytest.approx(expected, abs=6e-8)


@pytest.mark.parametrize('pos_embed', ['sincos', 'learn'])
@pytest.mark.parametrize('num_prefix_tokens', [0, 2])
def test_output_token_by_token(pos_embed, num_prefix_tokens):
    model = decoder((2, 3), num_prefix_tokens, pos_embed=pos_embed)
    x, kept, masked = tokens_for(model), some_places(model, 4), some_places(model, 3, seed=3)
    expected = []
    for sample in range(3):
        rows = [x[sample, i] + model.pos_embed[0, i] for i in range(num_prefix_tokens)]
        for place in kept[sample].tolist():
            token = model.mask_token[0, 0] if place in masked[sample].tolist() else x[sample, num_prefix_tokens + place]
            rows.append(token + model.pos_embed[0, num_prefix_tokens + place])
        expected.append(torch.stack(rows))
    expected = model.norm(model.blocks(torch.stack(expected)))
    torch.testing.assert_close(model(x, idx_keep=kept, idx_mask=masked), expected, **TOLERANCE)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[torch.arange(3).unsqueeze(1), masked] = True
    assert torch.equal(model(x, idx_keep=kept, mask=mask), model(x, idx_keep=kept, idx_mask=masked))


def test_masked_tokens_are_not_read():
    model = decoder((3, 5))
    x, masked = tokens_for(model), some_places(model, 6)
    other = x.clone()
    other[torch.arange(3).unsqueeze(1), masked + 1] = float('nan')
    assert torch.equal(model(other, idx_mask=masked), model(x, idx_mask=masked))


def test_positions_are_fixed_or_learned():
    fixed, learned = decoder((2, 3)), decoder((2, 3), pos_embed='learn')
    assert {name for name, _ in learned.named_parameters()} - {name for name, _ in fixed.named_parameters()} == {
        'pos_embed'}
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    assert not fixed.pos_embed[:, 0].any()  # the prefix token has none
    learned(tokens_for(learned)).sum().backward()
    assert learned.pos_embed.grad[0].any(-1).all()


@pytest.mark.parametrize('call', ['mask', 'idx_mask', 'idx_keep'])
def test_every_parameter_gets_a_gradient(call):
    model = decoder()
    mask = torch.rand(3, 16) < 0.5
    arguments = dict(
        mask=dict(mask=mask), idx_mask=dict(idx_mask=some_places(model, 6)),
        idx_keep=dict(idx_mask=some_places(model, 6), idx_keep=some_places(model, 8)))[call]
    model(tokens_for(model), **arguments).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    model = decoder()
    x, masked = tokens_for(model), some_places(model, 6)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x, idx_mask=masked).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    tree_map(torch.testing.assert_close, *gradients)


def test_initialisation():
    torch.manual_seed(0)
    model = MaskedDecoder((4, 4), embed_dim=256, depth=1, num_heads=4)
    qkv = model.blocks[0].attn.qkv
    bound = math.sqrt(6 / (256 + 768))  # Xavier, uniform
    assert 0.99 * bound < qkv.weight.abs().max() <= bound
    assert not qkv.bias.any()
    assert model.mask_token.std().item() == pytest.approx(.02, rel=0.2)
    assert model.norm.eps == model.blocks[0].norm1.eps == 1e-6


@pytest.mark.parametrize('call, message', [
    (lambda: MaskedDecoder((2, 2), embed_dim=30, num_heads=4), '4 heads do not divide the width 30 of the decoder.'),
    (lambda: MaskedDecoder((2, 2), embed_dim=6, num_heads=2),
     'A sine-cosine position embedding needs a multiple of 4 channels, got 6.'),
    (lambda: MaskedDecoder((2, 2), pos_embed='rope'), "pos_embed must be 'sincos' or 'learn', got 'rope'."),
    (lambda: decoder((2, 3))(torch.zeros(1, 6, 32)),
     'The decoder takes 7 tokens (1 prefix tokens and a grid of 2 x 3 patches), got a tensor of shape (1, 6, 32).'),
    (lambda: decoder((2, 3))(
        torch.zeros(1, 7, 32), idx_mask=torch.zeros(1, 1, dtype=torch.int64), mask=torch.ones(1, 6).bool()),
     'Give the masked patches as idx_mask or as mask, not both.'),
])
def test_mistakes(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
