import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.mim import EMATeacherMethod, MIMOutput
from tiny_models import build, images_for


class PredictsWhole(EMATeacherMethod):
    """Predicts, with no masking at all, what the teacher makes of an image. Of a model that cannot drop tokens."""

    def __init__(self, backbone, img_size=None):
        super().__init__(backbone, img_size)
        self.head = nn.Linear(24, 24)
        self.add_target_encoder((0.5, 1.0))

    def forward(self, images, mask=None, noise=None, generator=None):
        features = self.backbone.forward_features(images).flatten(1, 2)
        target = self.encode_target(images)
        return MIMOutput(F.mse_loss(self.head(features), target), features, target, mask)


def test_a_method_of_ones_own_on_a_hierarchical_model():
    method = PredictsWhole(build('swin', num_classes=0)).train()
    start, images = copy.deepcopy(method.backbone).eval(), images_for(method)
    output = method(images)
    with torch.no_grad():
        features = start.forward_features(images).flatten(1, 2)
    features = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(output.target, features, rtol=1e-4, atol=1e-4)
    assert not any(module.training for module in method.target_encoder.modules())

    output.loss.backward()
    assert all(parameter.grad is None for parameter in method.target_encoder.parameters())
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1.)
    method.update_target(0.)
    for before, after in zip(start.parameters(), method.target_encoder.parameters()):
        torch.testing.assert_close(after.detach(), before.detach() + 0.5)
