"""Programs of other libraries, rewritten on a page, come to what the originals come to."""
import pytest
import torch
import torch.nn as nn

import timm
from pages import SOURCE, blocks, run
from timm.mim import patchify, random_mask, split_mask

PAGE = SOURCE / 'embed_and_stages.mdx'


@pytest.mark.filterwarnings('ignore:MAEDecoderTIMM is deprecated')
def test_mae_of_lightly():
    backbones = pytest.importorskip('lightly.models.modules.masked_vision_transformer_timm')
    decoders = pytest.importorskip('lightly.models.modules.masked_autoencoder_timm')
    utils = pytest.importorskip('lightly.models.utils')
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    block, = [block for block in blocks(PAGE, 'python') if 'class MAE(' in block.code]
    namespace = dict(torch=torch, nn=nn, timm=timm, patchify=patchify, images=images)
    run(block, namespace)
    ours = namespace['program']

    theirs = backbones.MaskedVisionTransformerTIMM(timm.create_model('vit_tiny_patch16_224', num_classes=0))
    theirs.vit.load_state_dict(ours.vit.state_dict())
    decoder = decoders.MAEDecoderTIMM(
        num_patches=196, patch_size=16, embed_dim=192, decoder_embed_dim=96, decoder_depth=2, decoder_num_heads=3)
    weights = ours.state_dict()
    # decoder_embed and decoder_pred are called alike, decoder_blocks is decoder.blocks here
    decoder.load_state_dict({
        name: weights[name] if name in weights else weights[f"decoder.{name.removeprefix('decoder_')}"]
        for name in decoder.state_dict()})

    generator_state = torch.get_rng_state()
    prediction, target = ours(images)
    torch.set_rng_state(generator_state)
    visible, masked = split_mask(random_mask(torch.rand(2, 196), 147), 49)
    idx_keep = torch.cat([torch.zeros(2, 1, dtype=torch.long), visible + 1], dim=1)  # the class token is 0
    idx_mask = masked + 1
    tokens = utils.repeat_token(decoder.mask_token, (2, 197))
    encoded = decoder.embed(theirs.encode(images, idx_keep=idx_keep))
    tokens = utils.set_at_index(tokens, idx_keep, encoded.type_as(tokens))
    expected = decoder.predict(utils.get_at_index(decoder.decode(tokens), idx_mask))
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)
    pixels = utils.normalize_mean_var(utils.get_at_index(utils.patchify(images, 16), idx_mask - 1), dim=-1)
    torch.testing.assert_close(target, pixels, atol=1e-5, rtol=1e-5)
