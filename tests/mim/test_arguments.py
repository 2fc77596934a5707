"""What a caller gives is checked in the caller's terms, and its precision is kept."""
import pytest
import torch

import timm
from timm.mim import SimMIM, create_mim
from tiny_models import TOKEN_DROPPING_BUILDERS, build, images_for


@pytest.mark.parametrize('name', TOKEN_DROPPING_BUILDERS)
def test_keep_tokens_takes_indices(name):
    model = build(name)
    embedded = model.embed(torch.rand(2, 3, 64, 96))
    num_patches = 6 if 'hiera' in name else 24
    for keep, message in (
            (torch.ones(2, num_patches, dtype=torch.bool), r'int64 .*\(B, K\) with B = 2, got torch.bool .*nonzero'),
            (torch.tensor([0, 1]), r'got torch.int64 of shape \(2,\)'),
            (torch.zeros(1, 2, dtype=torch.long), r'got torch.int64 of shape \(1, 2\)'),
            (torch.zeros(2, 2, dtype=torch.int32), r'got torch.int32 of shape \(2, 2\)')):
        with pytest.raises(ValueError, match=message):
            model.keep_tokens(embedded, keep)


def test_indices_of_a_boolean_mask_as_the_message_says():
    model = build('vit')
    embedded = model.embed(torch.rand(2, 3, 64, 96))
    mask = torch.rand(2, 24).argsort(dim=1) < 5
    kept = model.keep_tokens(embedded, mask.nonzero()[:, 1].reshape(len(mask), -1))
    assert torch.equal(kept[:, 1:], embedded[:, 1:][mask].reshape(2, 5, -1))


@pytest.mark.parametrize('target, shape', [
    (lambda images: images.mean(), r'\(\)'), (lambda images: images.flatten(1), r'\(1, 18432\)'),
    (lambda images: images.flatten(2), r'\(1, 3, 6144\)')])
def test_target_of_the_wrong_shape(target, shape):
    with pytest.raises(ValueError, match=rf'target must return a map of shape \(B, D, h, w\), .* returned {shape}'):
        SimMIM(build('vit'), img_size=(64, 96), target=target)


@pytest.mark.parametrize('name, options', [
    ('simmim', {}), ('mae', {}), ('mae', dict(decoder='cross', predict_ratio=0.5)), ('ijepa', dict(num_targets=2)),
    ('data2vec', dict(mask_ratio=0.5)), ('capi', dict(num_clusters=16, predictor_depth=1)),
    ('spark', dict(decoder_dim=32)), ('fcmae', dict(decoder_dim=32))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_precision_of_the_loss(name, options, dtype):
    torch.manual_seed(0)
    model = timm.create_model('test_convnext2') if name in ('spark', 'fcmae') else build('vit')
    method = create_mim(name, model, **options).to(dtype)
    output = method(images_for(method).to(dtype))
    assert output.loss.dtype == output.prediction.dtype == output.target.dtype == dtype
