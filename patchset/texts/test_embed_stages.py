"""`embed` and `forward_stages`, the two halves of `forward_features`."""
import sys

import pytest
import torch

from timm.models import create_model

# a small model of each file, made smaller where that takes an argument
MODELS = {
    'beit': dict(model_name='beit_base_patch16_224', img_size=64, depth=1),
    'byobnet': dict(model_name='test_byobnet'),
    'cait': dict(model_name='cait_xxs24_224', img_size=64),
    'coat': dict(model_name='coat_tiny', img_size=64),
    'convit': dict(model_name='convit_tiny', img_size=64),
    'convmixer': dict(model_name='convmixer_768_32'),
    'convnext': dict(model_name='test_convnext'),
    'cpubone': dict(model_name='cpubone_nano'),
    'crossvit': dict(model_name='crossvit_tiny_240'),
    'csatv2': dict(model_name='csatv2'),
    'cspnet': dict(model_name='cs3darknet_focus_s'),
    'cspnext': dict(model_name='cspnext_tiny'),
    'davit': dict(model_name='davit_tiny'),
    'deepseek_vit': dict(model_name='deepseek_vit_412m', depth=1),
    'densenet': dict(model_name='densenet121'),
    'dla': dict(model_name='dla46x_c'),
    'dpn': dict(model_name='dpn48b'),
    'edgenext': dict(model_name='edgenext_xx_small'),
    'efficientformer': dict(model_name='efficientformer_l1'),
    'efficientformer_v2': dict(model_name='efficientformerv2_s0', img_size=64),
    'efficientnet': dict(model_name='test_efficientnet'),
    'efficientvim': dict(model_name='efficientvim_m1'),
    'efficientvit_mit': dict(model_name='efficientvit_b0'),
    'efficientvit_msra': dict(model_name='efficientvit_m0'),
    'eva': dict(model_name='vit_tiny_patch16_dinov3_qkvb'),
    'fasternet': dict(model_name='fasternet_t0'),
    'fastvit': dict(model_name='fastvit_t8'),
    'focalnet': dict(model_name='focalnet_tiny_srf'),
    'gcvit': dict(model_name='gcvit_xxtiny', img_size=64),
    'gemma4_vit': dict(model_name='gemma4_vit_167m', depth=1),
    'ghostnet': dict(model_name='ghostnet_050'),
    'hgnet': dict(model_name='hgnetv2_b0'),
    'hiera': dict(model_name='hiera_tiny_224', img_size=64),
    'hieradet_sam2': dict(model_name='sam2_hiera_tiny'),
    'hrnet': dict(model_name='hrnet_w18_small'),
    'iformer': dict(model_name='iformer_t'),
    'inception_next': dict(model_name='inception_next_atto'),
    'inception_resnet_v2': dict(model_name='inception_resnet_v2'),
    'inception_v3': dict(model_name='inception_v3'),
    'inception_v4': dict(model_name='inception_v4'),
    'lcnetv2': dict(model_name='lcnetv2_small'),
    'levit': dict(model_name='levit_128s', img_size=64),
    'lowformer': dict(model_name='lowformer_b0'),
    'mambaout': dict(model_name='test_mambaout'),
    'maxxvit': dict(model_name='test_coatnet', img_size=64),
    'metaformer': dict(model_name='poolformerv2_s12'),
    'mlp_mixer': dict(model_name='gmlp_ti16_224', img_size=64),
    'mobilenetv3': dict(model_name='mobilenetv3_small_050'),
    'mobilenetv5': dict(model_name='mobilenetv5_base'),
    'mvitv2': dict(model_name='mvitv2_tiny'),
    'naflexvit': dict(model_name='naflexvit_base_patch16_parfac_gap', depth=1),
    'nasnet': dict(model_name='nasnetalarge'),
    'nest': dict(model_name='nest_tiny', img_size=64),
    'nextvit': dict(model_name='nextvit_small'),
    'nfnet': dict(model_name='test_nfnet'),
    'pit': dict(model_name='pit_ti_224', img_size=64),
    'pnasnet': dict(model_name='pnasnet5large'),
    'pvt_v2': dict(model_name='pvt_v2_b0'),
    'qwen3_vit': dict(model_name='qwen3_vit_88m', depth=1),
    'rdnet': dict(model_name='rdnet_tiny'),
    'regnet': dict(model_name='regnetx_002'),
    'repghost': dict(model_name='repghostnet_050'),
    'repvit': dict(model_name='repvit_m1'),
    'resnet': dict(model_name='test_resnet'),
    'resnetv2': dict(model_name='resnetv2_18'),
    'rexnet': dict(model_name='rexnet_100'),
    'selecsls': dict(model_name='selecsls42'),
    'senet': dict(model_name='legacy_seresnet18'),
    'sequencer': dict(model_name='sequencer2d_s'),
    'shvit': dict(model_name='shvit_s1'),
    'starnet': dict(model_name='starnet_s050'),
    'swiftformer': dict(model_name='swiftformer_xs'),
    'swin_transformer': dict(model_name='swin_tiny_patch4_window7_224', img_size=64),
    'swin_transformer_v2': dict(model_name='swinv2_tiny_window16_256', img_size=64),
    'swin_transformer_v2_cr': dict(model_name='swinv2_cr_tiny_224', img_size=64),
    'tiny_vit': dict(model_name='tiny_vit_5m_224'),
    'tnt': dict(model_name='tnt_s_legacy_patch16_224', img_size=64),
    'tresnet': dict(model_name='tresnet_m'),
    'twins': dict(model_name='twins_svt_small'),
    'vgg': dict(model_name='vgg11', mlp_ratio=1 / 16),
    'visformer': dict(model_name='visformer_tiny', img_size=64),
    'vision_transformer': dict(model_name='test_vit'),
    'vision_transformer_relpos': dict(model_name='test_vit_relpos', img_size=64),
    'vision_transformer_sam': dict(model_name='samvit_base_patch16_224', depth=1),
    'volo': dict(model_name='volo_d1_224', img_size=64),
    'vovnet': dict(model_name='ese_vovnet19b_slim_dw'),
    'xception': dict(model_name='legacy_xception'),
    'xception_aligned': dict(model_name='xception41p'),
    'xcit': dict(model_name='xcit_nano_12_p8_224'),
}
# where the images are not of 64 pixels
SIZES = {
    'deepseek_vit': 224,
    'efficientformer': 224,
    'inception_resnet_v2': 96,
    'inception_v3': 96,
    'inception_v4': 96,
}


def has_mixin(name):
    return hasattr(sys.modules.get(f'timm.models.{name}'), 'EmbedStagesMixin')


def test_every_file_with_the_mixin_has_a_model_here():
    files = [name.removeprefix('timm.models.') for name in sys.modules if name.startswith('timm.models.')]
    assert set(filter(has_mixin, files)) - {'_embed_stages', '_model_class'} <= MODELS.keys()


@pytest.fixture(scope='module', params=filter(has_mixin, MODELS))
def case(request):
    """A model, images, and their features."""
    torch.manual_seed(0)
    model = create_model(**MODELS[request.param], num_classes=0).eval()
    size = SIZES.get(request.param, 64)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        return model, images, model.forward_features(images)


@torch.no_grad()
def test_halves_equal_the_whole(case):
    """The reference is `forward_intermediates`, which runs the same layers and knows nothing of the halves."""
    model, images, features = case
    expected, _ = model.forward_intermediates(images, indices=1)
    for found in features, model.forward_stages(model.embed(images)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
def test_patch_tokens_are_replaced(case):
    model, images, features = case
    try:
        height, width = model.patch_grid(images.shape[-2:])
        zeros = torch.zeros(2, height * width, model.patch_dim)
        patches = model.map_tokens(model.embed_patches(images), lambda tokens: zeros)
    except NotImplementedError as e:
        pytest.skip(str(e))
    found = model.forward_stages(model.embed_positions(patches))
    with pytest.raises(AssertionError):  # to the last bit: random weights leave little of an image at the end
        torch.testing.assert_close(found, features, rtol=0, atol=0)


@torch.no_grad()
def test_all_tokens_kept_are_the_whole(case):
    model, images, features = case
    try:
        height, width = model.keep_grid(images.shape[-2:])
        embedded = model.keep_tokens(model.embed(images), torch.arange(height * width).expand(2, -1))
    except NotImplementedError as e:
        pytest.skip(str(e))
    torch.testing.assert_close(model.forward_stages(embedded).flatten(1, -2), features.flatten(1, -2))
