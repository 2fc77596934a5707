"""Every mistake gets one line that says what is wrong and what is allowed."""
import pytest
import torch
import torch.nn as nn

from timm.mim import MIMUnsupportedError, SimMIM, create_mim
from timm.models.vision_transformer import VisionTransformer
from tiny_models import build, images_for


def message_of(call, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert message and '\n' not in message
    return message


@pytest.fixture(scope='module')
def method():
    return SimMIM(build('vit'))  # 64 x 96 pixels, patches and units of 16 and 32


def test_model_without_the_protocol():
    assert message_of(lambda: SimMIM(nn.Linear(3, 3)), MIMUnsupportedError) == (
        "SimMIM does not support Linear: Linear has no embed and forward_stages between which patch tokens could be "
        "masked; list_mim_models('simmim') lists the models that work, vit_base_patch16_224 or "
        "swin_base_patch4_window7_224 for example.")


def test_model_that_overrides_forward_features_alone():
    class Own(VisionTransformer):
        def forward_features(self, x):
            return x

    model = Own(img_size=32, embed_dim=24, depth=1, num_heads=2)
    assert message_of(lambda: SimMIM(model), MIMUnsupportedError).startswith('SimMIM does not support Own: Own has no ')


def test_model_without_a_patch_grid():
    class Branches(VisionTransformer):
        def patch_grid(self, img_size):
            raise NotImplementedError('Branches has two grids.')

    model = Branches(img_size=32, embed_dim=24, depth=1, num_heads=2)
    assert message_of(lambda: SimMIM(model), MIMUnsupportedError) == (
        'Branches has no patch grid: Branches has two grids.')


def test_model_without_a_feature_map():
    class Pooled(VisionTransformer):
        def features_to_map(self, features, grid_size):
            raise NotImplementedError('Pooled returns its class token only.')

    model = Pooled(img_size=32, embed_dim=24, depth=1, num_heads=2)
    assert message_of(lambda: SimMIM(model, mask_unit=16), MIMUnsupportedError) == (
        'Pooled gives no feature map: Pooled returns its class token only.')


@pytest.mark.parametrize('name', ['vit', 'eva'])
def test_patch_drop(name):
    assert message_of(lambda: SimMIM(build(name, patch_drop_rate=0.25)), MIMUnsupportedError).endswith(
        'drops random patches itself (patch_drop_rate=0.25), so the masked patches cannot be located: build it with '
        'patch_drop_rate=0.')


@pytest.mark.parametrize('name', ['vit', 'eva', 'swin'])
def test_image_size_of_another_model(name):
    message = message_of(lambda: SimMIM(build(name), img_size=64))
    assert 'does not take images of 64 x 64 pixels with 3 channels: ' in message
    assert "Input width (64) doesn't match model (96)" in message
    assert message.endswith(
        'Build the model for such images (img_size=, in_chans=), or, if it has the option, for any image size '
        '(dynamic_img_size=True).')


@pytest.mark.parametrize('name, kwargs, message', [
    ('vit', dict(img_size=(64, 100)), 'a multiple of 16 and width a multiple of 16, got 64 x 100 pixels.'),
    ('vit_rectangular_patch', dict(img_size=(72, 96)), 'a multiple of 16 and width a multiple of 8, got 72 x 96'),
    ('vit_dynamic', dict(img_size=(60, 60), dynamic_img_pad=True), 'a multiple of 16 and width a multiple of 16'),
    # 15 patches of 15 pixels it seems, they are 16 wide and padded
    ('vit_dynamic', dict(img_size=225, dynamic_img_pad=True), 'multiple of 16 and width a multiple of 16, got 225'),
    ('swin', dict(img_size=(68, 96)), 'a multiple of 8 and width a multiple of 8, got 68 x 96 pixels.'),
    # 42, 21, 11, 6 patches: an odd grid is padded, 168 / 6 is no stride
    ('swin', dict(img_size=168, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2)), 'a multiple of 32, got 168 x 168 pixels'),
])
def test_image_size_that_the_stride_does_not_divide(name, kwargs, message):
    assert message in message_of(lambda: SimMIM(build(name, **kwargs), mask_unit=4))


def test_another_image_size_in_the_forward_pass(method):
    message = message_of(lambda: method(torch.zeros(2, 3, 32, 96)))
    assert 'does not take images of 32 x 96 pixels' in message
    assert 'got 40 x 96 pixels' in message_of(lambda: method(torch.zeros(2, 3, 40, 96)))
    dynamic = SimMIM(build('vit_dynamic'))
    assert 'got 40 x 96 pixels' in message_of(lambda: dynamic(torch.zeros(2, 3, 40, 96)))
    assert message_of(lambda: dynamic(torch.zeros(2, 3, 48, 96))).startswith(
        'mask_unit 32 does not fit image height 48')


@pytest.mark.parametrize('options, message', [
    (dict(mask_ratio=1.), 'mask_ratio must be a number between 0 and 1, both excluded, got 1.0.'),
    (dict(mask_ratio=0), 'mask_ratio must be a number between 0 and 1, both excluded, got 0.'),
    (dict(mask_ratio=0.9, mask_unit=32),
     'mask_ratio 0.9 masks all 6 units of the image: use a smaller ratio or smaller units.'),
    (dict(mask_ratio='most'), "mask_ratio must be a number between 0 and 1, both excluded, got 'most'."),
    (dict(mask_unit=24), 'mask_unit 24 does not fit image height 64 with patch stride 16: it must be a multiple of '
                         'the stride that divides the image, one of 16, 32, 64.'),
    (dict(mask_unit=0), 'mask_unit must be a positive number of pixels or a pair (height, width), got 0.'),
    (dict(mask_unit=(16, 16, 16)), 'mask_unit must be a positive number of pixels or a pair (height, width), got '
                                   '(16, 16, 16).'),
    (dict(mask_unit=32.), 'mask_unit must be a positive number of pixels or a pair (height, width), got 32.0.'),
    (dict(img_size=-64), 'img_size must be a positive number of pixels or a pair (height, width), got -64.'),
])
def test_options(options, message):
    backbone = build('vit')
    assert message_of(lambda: SimMIM(backbone, **options)) == message
    assert backbone.num_classes == 1000 and isinstance(backbone.head, nn.Linear)  # a failure changes nothing


@pytest.mark.parametrize('images', [
    torch.zeros(2, 1, 64, 96), torch.zeros(3, 64, 96), torch.zeros(2, 3, 64, 96, dtype=torch.uint8)])
def test_images(method, images):
    assert message_of(lambda: method(images)) == (
        f'images must be normalised floats of shape (B, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}.')


@pytest.mark.parametrize('mask', [
    torch.zeros(2, 4, 6),
    torch.zeros(2, 6, 4, dtype=torch.bool),
    torch.zeros(1, 4, 6, dtype=torch.bool),
    torch.zeros(2, 23, dtype=torch.bool),
])
def test_mask(method, mask):
    message = (
        f'mask must be bool of shape (2, 4, 6) or (2, 24), got {mask.dtype} of shape {tuple(mask.shape)}.')
    assert message_of(lambda: method(images_for(method), mask=mask)) == message
    assert message_of(lambda: method.reconstruct(images_for(method), mask)) == message


def test_mask_and_noise_on_another_device(method):
    mask = torch.zeros(2, 4, 6, dtype=torch.bool, device='meta')
    assert message_of(lambda: method(images_for(method), mask=mask)) == (
        'mask must be on the device of the images, cpu, got meta.')
    assert message_of(lambda: method(images_for(method), noise=torch.zeros(2, 6, device='meta'))) == (
        'noise must have shape (2, 6) on cpu, got (2, 6) on meta.')


def test_noise(method):
    assert message_of(lambda: method(images_for(method), noise=torch.zeros(2, 24))) == (
        'noise must have shape (2, 6) on cpu, got (2, 24) on cpu.')


@pytest.mark.parametrize('other', [dict(noise=torch.zeros(2, 6)), dict(generator=torch.Generator())])
def test_mask_and_something_to_make_one(method, other):
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    assert message_of(lambda: method(images_for(method), mask=mask, **other)) == (
        'Give a mask, or the noise or generator to make one, not both.')


@pytest.mark.parametrize('name, side, stride', [
    ('tinynet_b', 188, 32), ('tinynet_c', 184, 32), ('tinynet_d', 152, 32), ('tinynet_e', 106, 32),
    ('selecsls42', 224, 64)])
def test_own_size_that_the_total_stride_does_not_divide(name, side, stride):
    """The sizes that fit are named."""
    with torch.device('meta'):
        message = message_of(lambda: create_mim('simmim', name, img_size=side))
    assert message.endswith(
        f'takes images whose height is a multiple of {stride} and width a multiple of {stride}, got {side} x {side} '
        'pixels.')
