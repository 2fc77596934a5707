import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm
from timm.mim import MIMUnsupportedError, SimMIM, TeacherTarget, create_mim, hog_target, normalize_patches, patchify
from tiny_models import build, images_for

PLAIN = dict(mean=(0., 0., 0.), std=(1., 1., 1.))


def some_mask(method, batch_size=2):
    grid = [size // stride for size, stride in zip(method.img_size, method.patch_stride)]
    return torch.rand(batch_size, *grid, generator=torch.Generator().manual_seed(2)) < 0.5


def teacher(name='vit_registers', **kwargs):
    return TeacherTarget(build(name), **{**PLAIN, **kwargs})


@pytest.mark.parametrize('name, target, channels, cell', [
    ('vit', 'pixels', 3, 1),
    ('vit', 'normalized_pixels', 3, 1),
    ('vit', 'hog', 27, 8),
    ('swin', 'hog', 27, 8),
    ('vit', teacher(), 24, 16),
    ('vit', teacher('swin'), 24, 8),  # of finer features than the student's
    ('vit', lambda images: F.avg_pool2d(images, 4)[:, :1], 1, 4),
])
def test_prediction_has_the_width_and_cells_of_the_target(name, target, channels, cell):
    method = SimMIM(build(name), target=target, mask_unit=16).eval()
    images, mask = images_for(method), some_mask(method)
    output = method(images, mask=mask)
    assert output.prediction.shape == output.target.shape == (2, channels, 64 // cell, 96 // cell)
    assert torch.equal(method.reconstruct(images, mask), output.prediction)
    assert method.reconstructs_pixels == (target == 'pixels')
    output.loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    # the mean over masked cells, by hand; a cell that is masked in part counts in part
    pixels = method.pixel_mask(mask)[:, 0].float().reshape(2, 64 // cell, cell, 96 // cell, cell).mean((2, 4))
    errors = (output.prediction - output.target).abs().mean(1)
    torch.testing.assert_close(output.loss, (errors * pixels).sum() / pixels.sum(), rtol=1e-5, atol=0)


def test_a_feature_predicts_the_cells_under_it():
    method = SimMIM(build('vit'), target=teacher('vit_dynamic', img_size=(128, 192)), mask_unit=16)
    assert method.decoder.stride == (2, 2)  # 8 x 12 features of the teacher on 4 x 6
    with torch.no_grad():
        method.decoder.proj.weight.zero_()
        method.decoder.proj.bias.copy_(torch.arange(24. * 4))
    prediction = method.reconstruct(images_for(method), some_mask(method))
    # channels in the order (channel, row, column)
    assert prediction[0, :, 2:4, 6:8].reshape(24, 4).flatten().tolist() == list(range(96))


def test_hog():
    method = SimMIM(build('vit'), target='hog', mask_unit=16)
    images = images_for(method)
    assert torch.equal(method(images, mask=some_mask(method)).target, hog_target(images, 9, 8, 16))


def test_normalized_pixels_are_maes():
    method = SimMIM(build('vit'), target='normalized_pixels', mask_unit=16)
    images = images_for(method)
    target = method(images, mask=some_mask(method)).target
    assert torch.equal(patchify(target, (16, 16)), normalize_patches(patchify(images, (16, 16))))


@pytest.mark.parametrize('loss, distance', [
    ('l1', lambda a, b: (a - b).abs()),
    ('l2', lambda a, b: (a - b) ** 2),
    ('smooth_l1', lambda a, b: torch.where((a - b).abs() < 1, (a - b) ** 2 / 2, (a - b).abs() - 0.5)),
])
def test_loss(loss, distance):
    method = SimMIM(build('vit'), target='hog', loss=loss, mask_unit=16)
    mask = some_mask(method)
    output = method(images_for(method), mask=mask)
    cells = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand_as(output.target)
    expected = distance(output.prediction, output.target)[cells].mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_features_of_a_teacher():
    """Against the teacher's own forward_features and a layer norm by hand, of images with its own normalisation."""
    model = build('vit_registers').eval()
    model.pretrained_cfg = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    target = TeacherTarget(model, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    raw = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def normalized(images, mean, std):
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        features = model.forward_features(normalized(raw, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))[:, 5:]
    features = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = features.transpose(1, 2).reshape(2, 24, 4, 6)
    images = normalized(raw, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    torch.testing.assert_close(target(images), expected, rtol=1e-4, atol=1e-4)
    # what the images are normalised with may become known later
    method = SimMIM(build('vit'), target=target, mask_unit=16)
    method.set_image_statistics((0.5,), (0.5,))
    images = normalized(raw, (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(method(images).target, expected, rtol=1e-4, atol=1e-4)


def test_teacher_is_not_trained_and_not_saved():
    model = build('vit_registers')
    before = copy.deepcopy(model.state_dict())
    method = SimMIM(build('vit'), target=TeacherTarget(model, **PLAIN), mask_unit=16).train()
    plain = SimMIM(build('vit'), target=lambda images: images[:, :, ::16, ::16].repeat(1, 8, 1, 1), mask_unit=16)
    assert [name for name, _ in method.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert method.state_dict().keys() == plain.state_dict().keys()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.SGD(method.parameters(), lr=1.)
    method(images_for(method)).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    method.load_state_dict(plain.state_dict())  # strict


def test_teacher_moves_with_the_method():
    model = build('vit')
    method = SimMIM(build('vit'), target=TeacherTarget(model, **PLAIN), mask_unit=16)
    method.double()
    assert next(model.parameters()).dtype == torch.float64
    method.float()
    method.to('meta')
    assert next(model.parameters()).device.type == 'meta'


def test_teacher_by_name(tmp_path):
    """A pretrained model, here one that lies in a folder, with other statistics and number of channels."""
    weights = timm.create_model('test_vit', num_classes=0)
    weights.pretrained_cfg.update(mean=(0.3,) * 3, std=(0.4,) * 3)
    timm.models.save_for_hf(weights, tmp_path)
    method = create_mim('simmim', 'vit_tiny_patch16_224', img_size=96, model_kwargs=dict(depth=1), mask_unit=16,
                        target=f'local-dir:{tmp_path}')
    state = method.target.teacher.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.state_dict().items() if 'pos' not in name)
    assert method.target.scale == pytest.approx([0.5 / 0.4] * 3)  # the student's are 0.5
    assert method(images_for(method)).loss.isfinite()


def test_compiles_as_one_graph():
    for target in ('hog', teacher()):
        method = SimMIM(build('vit'), target=target, mask_unit=16).eval()
        images, noise = images_for(method), torch.rand(method.noise_shape(2))
        compiled = torch.compile(method, fullgraph=True, backend='eager')
        assert torch.equal(compiled(images, noise=noise).loss, method(images, noise=noise).loss)


def test_another_image_size():
    method = SimMIM(build('vit_dynamic'), target='hog', mask_unit=16)
    assert method(torch.randn(1, 3, 32, 48)).target.shape == (1, 27, 4, 6)
    method = SimMIM(build('vit_dynamic'), target=teacher('vit_dynamic', img_size=(64, 96)), mask_unit=16)
    with pytest.raises(ValueError, match='The target has 4 x 6 cells, which is not a multiple of the 5 x 6 features'):
        method(torch.randn(1, 3, 80, 96))
    with pytest.raises(ValueError, match='The target has cells of another size for images of 32 x 48 pixels'):
        method(torch.randn(1, 3, 32, 48))


@pytest.mark.parametrize('call, message', [
    (lambda: SimMIM(build('vit'), target='hogs'),
     "target must be pixels, normalized_pixels, hog, the name of a model or a function of images, got 'hogs'."),
    (lambda: SimMIM(build('vit'), loss='l3'), "loss must be 'l1', 'l2' or 'smooth_l1', got 'l3'."),
    (lambda: SimMIM(build('vit'), target=teacher('vit_dynamic', img_size=(48, 96))),
     'The target has 3 x 6 cells, which is not a multiple of the 4 x 6 features of the model for images of 64 x 96 '
     'pixels; for a teacher, set another image size, TeacherTarget(..., img_size=).'),
    (lambda: SimMIM(build('vit', in_chans=4), target=teacher()),
     'The teacher VisionTransformer takes 3 channels, the images have 4.'),
    (lambda: TeacherTarget(nn.Linear(2, 2), **PLAIN),
     'Linear cannot be a teacher: Linear has no embed and forward_stages between which patch tokens could be masked.'),
])
def test_mistakes(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_convolutional_teacher():
    teacher = TeacherTarget(timm.create_model('test_resnet', num_classes=0), **PLAIN)
    images = torch.randn(2, 3, 64, 96)
    assert teacher(images).shape == (2, timm.create_model('test_resnet').num_features, 2, 3)


def test_teacher_without_a_feature_map_is_refused():
    with pytest.raises(MIMUnsupportedError, match='cannot be a teacher'):
        TeacherTarget(timm.create_model('pit_ti_224'), **PLAIN)
