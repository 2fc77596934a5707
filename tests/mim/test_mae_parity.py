"""MAE against Hugging Face's implementation: same weights, same noise, float32.

What is theirs and not ours. Built from a configuration, its positions, class and mask token are zeros: they are set
here. It keeps 9 of 100 patches at ratio 0.9 (floats; we with `reference_count`). It refuses an image that is not square
in one check, before a formula that would do: the check is stepped over here. Its decoder's interpolation of positions
for other sizes is 1-D over the flattened grid, which no test can agree with. Its positions get no gradient.

Tolerances: as in test_simmim_parity.py.
"""
import pytest
import torch

from hugging_face import BLOCK_NAMES, join_qkv, relative_difference, rename
from timm.mim import MAE, sincos_position_embedding
from timm.models.vision_transformer import VisionTransformer

transformers = pytest.importorskip('transformers')

FORWARD, GRADIENT = 1e-5, 1e-4
NAMES = {
    'vit.embeddings.cls_token': 'backbone.cls_token',
    'vit.embeddings.position_embeddings': 'backbone.pos_embed',
    'vit.embeddings.patch_embeddings.projection': 'backbone.patch_embed.proj',
    'vit.layers': 'backbone.blocks',
    'vit.layernorm.': 'backbone.norm.',
    'decoder.decoder_embed': 'decoder_embed',
    'decoder.decoder_pred': 'decoder_pred',
    'decoder.decoder_pos_embed': 'decoder.pos_embed',
    'decoder.decoder_layers': 'decoder.blocks',
    'decoder.decoder_norm': 'decoder.norm',
}


def our_tensors(tensors):
    return join_qkv({rename(name, {**BLOCK_NAMES, **NAMES}): tensor for name, tensor in tensors.items()})


def pair(img_size=(64, 64), patch_size=16, in_chans=3, norm_pix=True, mask_ratio=0.75, **options):
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=img_size,
        patch_size=patch_size, num_channels=in_chans, layer_norm_eps=1e-6, decoder_hidden_size=32,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=128,
        mask_ratio=mask_ratio, norm_pix_loss=norm_pix))
    backbone = VisionTransformer(
        img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2.)
    ours = MAE(backbone, mask_ratio=mask_ratio, norm_pix=norm_pix, decoder_dim=32, decoder_depth=2, decoder_heads=2,
               **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        # our positions stay those that we compute, theirs get them
        grid = [size // patch_size for size in img_size]
        positions = torch.cat([torch.zeros(1, 32), sincos_position_embedding(grid, 32)])
        theirs.decoder.decoder_pos_embed.copy_(positions.unsqueeze(0))
    positions = ours.decoder.pos_embed.clone()
    ours.load_state_dict(our_tensors(theirs.state_dict()))  # strict
    assert torch.equal(ours.decoder.pos_embed, positions)
    return theirs, ours


def patchify_without_check(theirs):
    patchify = theirs.patchify
    theirs.patchify = lambda pixels, interpolate_pos_encoding: patchify(pixels, interpolate_pos_encoding=True)


@pytest.mark.parametrize('options', [
    dict(),
    dict(norm_pix=False),
    dict(in_chans=1, patch_size=8),
    dict(in_chans=4, mask_ratio=0.6),
    dict(img_size=(64, 144)),  # 4 x 9 patches: the root of their number is whole, as it has to be there
    dict(img_size=(32, 128), patch_size=8),
], ids=str)
def test_loss_prediction_and_gradients(options):
    theirs, ours = pair(**options)
    img_size = ours.img_size
    if img_size[0] != img_size[1]:
        patchify_without_check(theirs)
    images = torch.randn(3, ours.in_chans, *img_size)
    noise = torch.rand(3, ours.num_patches)
    output, reference = ours(images, noise=noise), theirs(images, noise=noise)
    mask = reference.mask.bool()
    assert torch.equal(output.mask.flatten(1), mask)
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD
    assert relative_difference(output.prediction.flatten(0, 1), reference.logits[mask]) < FORWARD
    pixels = theirs.unpatchify(reference.logits, img_size)
    assert relative_difference(ours.reconstruct(images, output.mask), pixels) < FORWARD

    output.loss.backward()
    reference.loss.backward()
    gradients = our_tensors({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad})
    trained = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() - gradients.keys() == {'backbone.pos_embed'}
    for name, gradient in gradients.items():
        assert relative_difference(trained[name], gradient) < GRADIENT, name


@pytest.mark.parametrize('num_patches_a_side, mask_ratio, exact, theirs_count', [(10, 0.9, 10, 9), (4, 0.75, 4, 4)])
def test_their_count_of_visible_patches(num_patches_a_side, mask_ratio, exact, theirs_count):
    size = num_patches_a_side * 4
    theirs, ours = pair((size, size), 4, mask_ratio=mask_ratio, reference_count=True)
    noise = torch.rand(2, num_patches_a_side ** 2)
    images = torch.randn(2, 3, size, size)
    reference = theirs(images, noise=noise)
    assert (1 - reference.mask).sum(1).tolist() == [theirs_count] * 2
    assert torch.equal(ours(images, noise=noise).mask.flatten(1), reference.mask.bool())
    assert pair((size, size), 4, mask_ratio=mask_ratio)[1].num_visible == exact


def test_their_zeros_are_not_ours():
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, image_size=64,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2))
    assert not theirs.decoder.mask_token.any() and not theirs.decoder.decoder_pos_embed.any()
    ours = pair()[1]
    fresh = MAE(VisionTransformer(img_size=64, embed_dim=48, depth=1, num_heads=4), decoder_dim=32, decoder_depth=1,
                decoder_heads=2)
    assert fresh.decoder.mask_token.all() and torch.equal(fresh.decoder.pos_embed, ours.decoder.pos_embed)
