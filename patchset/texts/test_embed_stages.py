"""`embed` and `forward_stages`, the two halves of a vision transformer's `forward_features`."""
import pytest
import torch

from timm.models import create_model

# a small model of each file whose models have the two halves
MODELS = {
    'beit': dict(model_name='beit_base_patch16_224', depth=1),
    'byobnet': dict(model_name='test_byobnet'),
    'cait': dict(model_name='cait_xxs24_224'),
    'coat': dict(model_name='coat_tiny'),
    'convit': dict(model_name='convit_tiny'),
    'convmixer': dict(model_name='convmixer_768_32'),
    'cpubone': dict(model_name='cpubone_nano'),
    'crossvit': dict(model_name='crossvit_tiny_240'),
    'csatv2': dict(model_name='csatv2'),
    'davit': dict(model_name='davit_tiny'),
    'deepseek_vit': dict(model_name='deepseek_vit_412m', depth=1),
    'edgenext': dict(model_name='edgenext_xx_small'),
    'efficientformer': dict(model_name='efficientformer_l1'),
    'efficientformer_v2': dict(model_name='efficientformerv2_s0'),
    'efficientvim': dict(model_name='efficientvim_m1'),
    'efficientvit_mit': dict(model_name='efficientvit_b0'),
    'efficientvit_msra': dict(model_name='efficientvit_m0'),
    'eva': dict(model_name='vit_tiny_patch16_dinov3_qkvb'),
    'fastvit': dict(model_name='fastvit_t8'),
    'focalnet': dict(model_name='focalnet_tiny_srf'),
    'gcvit': dict(model_name='gcvit_xxtiny'),
    'gemma4_vit': dict(model_name='gemma4_vit_167m', depth=1),
    'hiera': dict(model_name='hiera_tiny_224'),
    'hieradet_sam2': dict(model_name='sam2_hiera_tiny'),
    'iformer': dict(model_name='iformer_t'),
    'levit': dict(model_name='levit_128s'),
    'lowformer': dict(model_name='lowformer_b0'),
    'mambaout': dict(model_name='test_mambaout'),
    'maxxvit': dict(model_name='test_coatnet'),
    'metaformer': dict(model_name='poolformerv2_s12'),
    'mlp_mixer': dict(model_name='gmlp_ti16_224'),
    'mobilenetv3': dict(model_name='mobilenetv3_small_050'),
    'mobilenetv5': dict(model_name='mobilenetv5_base'),
    'mvitv2': dict(model_name='mvitv2_tiny'),
    'naflexvit': dict(model_name='naflexvit_base_patch16_parfac_gap', depth=1),
    'nest': dict(model_name='nest_tiny'),
    'nextvit': dict(model_name='nextvit_small'),
    'pit': dict(model_name='pit_ti_224'),
    'pvt_v2': dict(model_name='pvt_v2_b0'),
    'qwen3_vit': dict(model_name='qwen3_vit_88m', depth=1),
    'sequencer': dict(model_name='sequencer2d_s'),
    'shvit': dict(model_name='shvit_s1'),
    'swiftformer': dict(model_name='swiftformer_xs'),
    'swin_transformer': dict(model_name='swin_tiny_patch4_window7_224'),
    'swin_transformer_v2': dict(model_name='swinv2_tiny_window16_256'),
    'swin_transformer_v2_cr': dict(model_name='swinv2_cr_tiny_224'),
    'tiny_vit': dict(model_name='tiny_vit_5m_224'),
    'tnt': dict(model_name='tnt_s_legacy_patch16_224'),
    'twins': dict(model_name='twins_svt_small'),
    'visformer': dict(model_name='visformer_tiny'),
    'vision_transformer': dict(model_name='test_vit'),
    'vision_transformer_relpos': dict(model_name='test_vit_relpos'),
    'vision_transformer_sam': dict(model_name='samvit_base_patch16_224', depth=1),
    'volo': dict(model_name='volo_d1_224'),
    'xcit': dict(model_name='xcit_nano_12_p8_224'),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return create_model(**MODELS[request.param], num_classes=0).eval()


@pytest.fixture
def images(model):
    size = model.default_cfg['input_size'][-1]
    return torch.randn(2, 3, *([size if size <= 512 else 224] * 2))  # the large ones take any size


@torch.no_grad()
def test_halves_equal_the_whole(model, images):
    """The reference is `forward_intermediates`, which runs the same layers and knows nothing of the halves."""
    expected, _ = model.forward_intermediates(images, indices=1)
    for features in model.forward_stages(model.embed(images)), model.forward_features(images):
        torch.testing.assert_close(features, expected, rtol=0, atol=0)


@torch.no_grad()
def test_patch_tokens_are_replaced(model, images):
    try:
        height, width = model.patch_grid(images.shape[-2:])
        zeros = torch.zeros(2, height * width, model.patch_dim)
        patches = model.map_tokens(model.embed_patches(images), lambda tokens: zeros)
    except NotImplementedError as e:
        pytest.skip(str(e))
    features = model.forward_stages(model.embed_positions(patches))
    with pytest.raises(AssertionError):  # to the last bit: random weights leave little of an image at the end
        torch.testing.assert_close(features, model.forward_features(images), rtol=0, atol=0)


@torch.no_grad()
def test_all_tokens_kept_are_the_whole(model, images):
    try:
        height, width = model.keep_grid(images.shape[-2:])
        embedded = model.keep_tokens(model.embed(images), torch.arange(height * width).expand(2, -1))
    except NotImplementedError as e:
        pytest.skip(str(e))
    features, expected = model.forward_stages(embedded), model.forward_features(images)
    torch.testing.assert_close(features.flatten(1, -2), expected.flatten(1, -2))
