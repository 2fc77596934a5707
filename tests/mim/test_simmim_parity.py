"""SimMIM against Hugging Face's implementation: same weights, same mask, float32.

Two things of theirs are not ours. Their mask token is initialised with zeros (microsoft/SimMIM and we: truncated
normal, std 0.02), so it is set here. Their masks are (batch, patches) only, and their models square only.

Tolerances: both sides run the same sums in another order (fused or separate query, key and value; another attention
kernel). A float32 carries 6e-8; a few hundred terms and a few layers leave 1e-6 or so, gradients ten times as much.
"""
import pytest
import torch

from hugging_face import BLOCK_NAMES, join_qkv, relative_difference, rename
from timm.mim import SimMIM
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

transformers = pytest.importorskip('transformers')

FORWARD, GRADIENT = 1e-5, 1e-4

VIT_NAMES = {
    'embeddings.cls_token': 'cls_token',
    'embeddings.position_embeddings': 'pos_embed',
    'embeddings.patch_embeddings.projection': 'patch_embed.proj',
    'layers': 'blocks',
    'layernorm': 'norm',
}
SWIN_NAMES = {
    'embeddings.patch_embeddings.projection': 'patch_embed.proj',
    'embeddings.norm': 'patch_embed.norm',
    'encoder.layers': 'layers',
    'attention.relative_position_bias.relative_position_bias_table': 'attn.relative_position_bias_table',
    'layernorm': 'norm',
}

def our_name(name, names):
    prefix, name = name.split('.', 1)
    if prefix == 'decoder':
        return name.replace('0.', 'decoder.proj.')
    if name == 'embeddings.mask_token':
        return 'mask_token'
    name = rename(name, {**BLOCK_NAMES, **names})
    parts = name.split('.')
    if 'downsample' in parts:  # theirs ends a stage, ours begins the next
        name = '.'.join(['layers', str(int(parts[1]) + 1), *parts[2:]])
    return f'backbone.{name}'


def our_tensors(tensors, names):
    """Tensors by our names, query, key and value joined."""
    return join_qkv({our_name(name, names): tensor for name, tensor in tensors.items()})


def vit_pair(in_chans):
    theirs = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=64, patch_size=16,
        encoder_stride=16, num_channels=in_chans, layer_norm_eps=1e-6))
    ours = VisionTransformer(
        img_size=64, patch_size=16, in_chans=in_chans, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.)
    return theirs, SimMIM(ours, mask_unit=16), VIT_NAMES


def swin_pair(in_chans):
    theirs = transformers.SwinForMaskedImageModeling(transformers.SwinConfig(
        embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 4], window_size=4, image_size=64, patch_size=4,
        encoder_stride=16, num_channels=in_chans, drop_path_rate=0.))
    ours = SwinTransformer(
        img_size=64, patch_size=4, in_chans=in_chans, embed_dim=16, depths=(2, 2, 1), num_heads=(2, 4, 4),
        window_size=4, drop_path_rate=0.)
    return theirs, SimMIM(ours, mask_unit=16), SWIN_NAMES


@pytest.mark.parametrize('in_chans', [1, 3])
@pytest.mark.parametrize('pair', [vit_pair, swin_pair])
def test_loss_reconstruction_and_gradients(pair, in_chans):
    torch.manual_seed(0)
    theirs, ours, names = pair(in_chans)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # zeros, mask token and biases, would hide much
    missing = ours.load_state_dict(our_tensors(theirs.state_dict(), names), strict=False)
    assert missing.unexpected_keys == []
    assert all('relative_position_index' in name or 'attn_mask' in name for name in missing.missing_keys)

    images = torch.randn(3, in_chans, 64, 64)
    output = ours(images)
    reference = theirs(images, bool_masked_pos=output.mask.flatten(1))
    assert output.mask.float().mean() == 10 / 16
    assert abs(output.loss - reference.loss) / reference.loss < FORWARD
    assert relative_difference(output.prediction, reference.reconstruction) < FORWARD
    assert relative_difference(ours.reconstruct(images, output.mask), reference.reconstruction) < FORWARD

    output.loss.backward()
    reference.loss.backward()
    gradients = our_tensors({name: parameter.grad for name, parameter in theirs.named_parameters()}, names)
    assert gradients.keys() == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in ours.named_parameters():
        assert relative_difference(parameter.grad, gradients[name]) < GRADIENT, name


def test_their_mask_token_starts_at_zero_and_ours_does_not():
    theirs, ours, _ = vit_pair(3)
    assert not theirs.vit.embeddings.mask_token.any() and ours.mask_token.all()
