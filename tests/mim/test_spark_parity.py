"""SparK and FCMAE against an independent implementation that gathers visible cells."""
import pytest
import torch

from gathered_reference import convnext_scales, fcmae_loss, resnet_scales, spark_loss

from timm.mim import FCMAE, SparK
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

SIZE = (64, 96)
CONVNEXT = dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 24), num_classes=0)


def resnet(block):
    return ResNet(block, (1, 2, 1, 1), num_classes=0, stem_width=8, channels=(8, 12, 16, 24))


def moved(method):
    """A method in training whose every parameter was moved away from where a constant initialisation would hide it."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method.train()


def assert_same(method, reference):
    images = torch.randn(3, 3, *SIZE) * 2 + 1
    mask = torch.tensor([[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1]], dtype=torch.bool).view(3, 2, 3)
    parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
    loss = method(images, mask=mask).loss
    expected = reference(method, images, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(loss, parameters.values())
    others = torch.autograd.grad(expected, parameters.values())
    for name, gradient, other in zip(parameters, gradients, others):
        # sums in another order: an error of 1e-5 of the largest value, biases before a batch norm are near zero
        largest = max(float(other.abs().max()), 1e-2)
        assert (gradient - other).abs().max() <= 1e-5 * largest + 1e-6, name


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('block', [BasicBlock, Bottleneck])
def test_spark_of_resnet(block):
    method = moved(SparK(resnet(block), SIZE, decoder_dim=64))
    assert_same(method, lambda *inputs: spark_loss(inputs[0], resnet_scales, *inputs[1:]))


@pytest.mark.parametrize('decoder_dim', [64, 32])
def test_spark_of_convnext(decoder_dim):
    method = moved(SparK(ConvNeXt(**CONVNEXT), SIZE, decoder_dim=decoder_dim))
    assert_same(method, lambda *inputs: spark_loss(inputs[0], convnext_scales, *inputs[1:]))


def test_fcmae_of_convnext_v2():
    backbone = ConvNeXt(**CONVNEXT, use_grn=True, ls_init_value=None)
    assert_same(moved(FCMAE(backbone, SIZE, decoder_dim=16, decoder_depth=2)), fcmae_loss)


def test_running_statistics_are_those_of_visible_cells():
    method = SparK(resnet(BasicBlock), SIZE, decoder_dim=32).train()
    images, mask = torch.randn(2, 3, *SIZE), torch.tensor([[[1, 0, 1], [0, 1, 1]]], dtype=torch.bool).expand(2, 2, 3)
    method(images, mask=mask)
    stem = torch.nn.functional.conv2d(
        method.blank(images, mask), method.backbone.conv1.weight, stride=2, padding=3)
    rows = stem.permute(0, 2, 3, 1)[~mask.repeat_interleave(16, 1).repeat_interleave(16, 2)]
    bn = method.backbone.bn1
    torch.testing.assert_close(bn.running_mean, 0.1 * rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bn.running_var, 0.9 + 0.1 * rows.var(0), rtol=1e-5, atol=1e-6)
    assert bn.num_batches_tracked == 1
