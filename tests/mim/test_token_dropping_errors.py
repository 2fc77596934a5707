"""Every mistake with MAE and I-JEPA gets one line that says what is wrong and what is allowed."""
import pytest
import torch

from timm.mim import IJEPA, MAE, MIMUnsupportedError, create_mim
from tiny_models import build, images_for


def message_of(call, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert message and '\n' not in message
    return message


UNPADDED = 'has no grid of patches that divides an image: convolutions of its stem do not pad'
UNPADDED_MODELS = {
    'inception_v3': 'InceptionV3', 'inception_v4': 'InceptionV4', 'inception_resnet_v2': 'InceptionResnetV2',
    'legacy_xception': 'Xception', 'nasnetalarge': 'NASNetALarge', 'pnasnet5large': 'PNASNet5Large'}


@pytest.fixture(scope='module')
def mae():
    return MAE(build('vit'), decoder_dim=24, decoder_depth=1, decoder_heads=2)  # 4 x 6 patches, 6 visible


@pytest.fixture(scope='module')
def ijepa():
    return IJEPA(build('vit'), predictor_dim=24, predictor_depth=1)


@pytest.mark.parametrize('method', ['mae', 'ijepa'])
@pytest.mark.parametrize('name, reason', [
    ('swin_tiny_patch4_window7_224', 'SwinTransformer needs its whole grid of tokens and cannot drop any'),
    ('beit_base_patch16_224', 'Beit needs its whole grid of tokens and cannot drop any'),
    ('vit_relpos_small_patch16_224', 'VisionTransformerRelPos needs its whole grid of tokens and cannot drop any'),
    ('crossvit_tiny_240', 'CrossVit needs its whole grid of tokens and cannot drop any'),
    ('resnet18', 'ResNet needs its whole grid of tokens and cannot drop any'),
])
def test_models_that_cannot_drop_tokens(method, name, reason):
    with torch.device('meta'):
        message = message_of(lambda: create_mim(method, name), MIMUnsupportedError)
    title = {'mae': 'MAE', 'ijepa': 'IJEPA'}[method]
    assert message == (
        f"{title} does not support {name}: {reason}; list_mim_models('{method}') lists the models that work, "
        f"vit_base_patch16_224 for example; SimMIM also works with models that cannot drop tokens.")


@pytest.mark.parametrize('name, reason', [
    ('crossvit_tiny_240', 'CrossVit has no patch tokens that can be replaced before positions are added'),
    ('pit_ti_224', 'PoolingVisionTransformer gives no feature map'),
    *((name, f'{cls} {UNPADDED}') for name, cls in UNPADDED_MODELS.items()),
])
def test_models_without_a_feature_map_for_simmim(name, reason):
    with torch.device('meta'):
        message = message_of(lambda: create_mim('simmim', name), MIMUnsupportedError)
    assert message.startswith(f'SimMIM does not support {name}: {reason}; list_mim_models(')


def test_model_that_refuses_when_asked():
    with torch.device('meta'):
        message = message_of(lambda: create_mim('mae', build('vit_rectangular_patch').__class__(
            img_size=32, embed_dim=24, depth=1, num_heads=2, patch_drop_rate=0.5)), MIMUnsupportedError)
    assert message.endswith('build it with patch_drop_rate=0.')


def test_model_whose_keep_tokens_refuses_in_this_instance():
    class Merging(type(build('vit'))):
        def keep_tokens(self, embedded, keep):
            raise NotImplementedError('Merging merges neighbours.')

    model = Merging(img_size=64, embed_dim=24, depth=1, num_heads=2)
    assert message_of(lambda: MAE(model), MIMUnsupportedError) == (
        'Merging cannot drop tokens: Merging merges neighbours.')
    assert model.num_classes == 1000  # a failure changes nothing


def test_model_that_pools_kept_tokens():
    class Pooling(type(build('vit'))):
        def forward_stages(self, x, attn_mask=None, is_causal=False):
            return super().forward_stages(x)[:, ::2]

    model = Pooling(img_size=64, embed_dim=24, depth=1, num_heads=2)
    assert message_of(lambda: MAE(model), MIMUnsupportedError) == (
        'Pooling does not return one token per visible patch: for 4 patches and 1 prefix tokens it returns a tensor of '
        'shape (2, 3, 24).')


@pytest.mark.parametrize('options, message', [
    (dict(mask_ratio=1.), 'mask_ratio must be a number between 0 and 1, both excluded, got 1.0.'),
    (dict(mask_ratio=0.99), 'mask_ratio 0.99 masks all 24 units of the image: use a smaller ratio or smaller units.'),
    (dict(decoder_heads=7), '7 heads do not divide the width 512 of the decoder.'),
    (dict(decoder_pos_embed='none'), "pos_embed must be 'sincos' or 'learn', got 'none'."),
])
def test_mae_options(options, message):
    backbone = build('vit')
    assert message_of(lambda: MAE(backbone, **options)) == message
    assert backbone.num_classes == 1000


@pytest.mark.parametrize('options, message', [
    (dict(sampler='fair'), "sampler must be 'unbiased' or 'official', got 'fair'."),
    (dict(momentum=0.996), 'momentum must be a pair (at the beginning, at the end) of numbers from 0 to 1, got 0.996.'),
    (dict(momentum=(0.9, 1.1)), 'momentum must be a pair (at the beginning, at the end) of numbers from 0 to 1, got '
                                '(0.9, 1.1).'),
    (dict(num_targets=0), 'num_targets must be a positive number of blocks, got 0.'),
    (dict(target_scale=(0.9, 0.95), num_targets=9),
     'A grid of 4 x 6 patches is too small for 9 target blocks of 20 patches, which may leave no context: use at '
     'most 1 (num_targets=1), larger images or smaller patches.'),
])
def test_ijepa_options(options, message):
    backbone = build('vit')
    assert message_of(lambda: IJEPA(backbone, **options)) == message
    assert backbone.num_classes == 1000


@pytest.mark.parametrize('name', ['mae', 'ijepa'])
def test_images(name, request):
    method = request.getfixturevalue(name)
    assert message_of(lambda: method(torch.zeros(2, 1, 64, 96))).startswith('images must be normalised floats of shape')
    assert message_of(lambda: method(torch.zeros(2, 3, 96, 64))) == (
        f'{type(method).__name__} was built for images of 64 x 96 pixels (img_size=), got 96 x 64.')
    noise = method.noise_shape(2)
    assert message_of(lambda: method(images_for(method), noise=torch.zeros(2, 3))) == (
        f'noise must have shape {noise} on cpu, got (2, 3) on cpu.')


@pytest.mark.parametrize('mask, message', [
    (torch.zeros(2, 4, 6), 'mask must be bool of shape (2, 4, 6) or (2, 24), got torch.float32 of shape (2, 4, 6).'),
    (torch.arange(24) < torch.tensor([[14], [15]]),
     'mask must leave the same number of patches visible in each sample, at least one, got 9, 10.'),
    (torch.ones(2, 24).bool(),
     'mask must leave the same number of patches visible in each sample, at least one, got 0.'),
    (torch.zeros(2, 24).bool(), 'mask must mask at least one patch, got none.'),
])
def test_mae_masks(mae, mask, message):
    assert message_of(lambda: mae(images_for(mae), mask=mask)) == message


def test_mask_and_noise(mae, ijepa):
    message = 'Give a mask, or the noise or generator to make one, not both.'
    mask, noise = torch.arange(24).expand(2, -1) % 2 == 0, torch.zeros(2, 24)
    assert message_of(lambda: mae(images_for(mae), mask=mask, noise=noise)) == message
    masks = ijepa.make_mask(torch.rand(ijepa.noise_shape(2)))
    assert message_of(lambda: ijepa(images_for(ijepa), mask=masks, generator=torch.Generator())) == message


@pytest.mark.parametrize('masks, message', [
    ((torch.zeros(2, 3), torch.zeros(2, 4, 4).long()),
     'context of the mask must be int64 of shape (B, K) with B = 2, got torch.float32 of shape (2, 3).'),
    ((torch.zeros(2, 3).long(), torch.zeros(2, 4).long()),
     'targets of the mask must be int64 of shape (B, T, M) with B = 2, got torch.int64 of shape (2, 4).'),
    ((torch.zeros(2, 3).long(), torch.zeros(1, 4, 4).long()),
     'targets of the mask must be int64 of shape (B, T, M) with B = 2, got torch.int64 of shape (1, 4, 4).'),
    ((torch.zeros(2, 3).long(), torch.zeros(2, 4, 4, device='meta').long()),
     'mask must be on the device of the images, cpu, got meta.'),
])
def test_ijepa_masks(ijepa, masks, message):
    assert message_of(lambda: ijepa(images_for(ijepa), mask=masks)) == message


def test_progress(ijepa):
    assert message_of(lambda: ijepa.update_target(1.5)) == 'progress must be a number from 0 to 1, got 1.5.'
