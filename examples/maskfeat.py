"""MaskFeat, an example of a user's own method: predict histograms of oriented gradients (HOG) of masked patches.

    python train.py --mim-module examples/maskfeat.py --mim maskfeat --model vit_small_patch16_224

Paper: `Masked Feature Prediction for Self-Supervised Visual Pre-Training` - https://arxiv.org/abs/2112.09133
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from timm.mim import MIMMethod, MIMOutput, PixelDecoder, block_mask, block_noise_size, dry_run, \
    encode_with_mask_token, hog_target, masked_count, masked_loss, register_mim, remove_unused


@register_mim('maskfeat')
class MaskFeat(MIMMethod):
    reconstructs_pixels = False

    def __init__(self, backbone, img_size=None, mask_ratio=0.4):
        super().__init__(backbone, img_size)
        features = dry_run(backbone, self.in_chans, self.img_size)
        remove_unused(backbone, features.unused)
        self.grid = backbone.patch_grid(self.img_size)
        self.num_masked = masked_count(math.prod(self.grid), mask_ratio)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.patch_dim))
        cells = features.stride[0] // 8, features.stride[1] // 8  # HOG cells per feature
        self.decoder = PixelDecoder(features.channels, cells, out_chans=9 * self.in_chans)

    def noise_shape(self, batch_size):
        return batch_size, block_noise_size(self.grid)

    def make_mask(self, noise, img_size=None):
        return block_mask(noise, self.grid, self.num_masked).unflatten(1, self.grid)

    def predict(self, images, mask):
        return self.decoder(encode_with_mask_token(self.backbone, images, mask, self.mask_token)).float()

    def make_target(self, images, mask):
        return hog_target(images)

    def compare(self, prediction, target, mask):
        return MIMOutput(masked_loss(prediction, target, self.pixel_mask(mask), F.mse_loss), prediction, target, mask)
