"""Compare a SimMIM training step of ours with transformers, for ViT and Swin."""
from typing import Dict, List

import torch
import torch.nn as nn
from transformers import SwinConfig, SwinForMaskedImageModeling, ViTConfig, ViTForMaskedImageModeling

from timm.mim import create_mim
from timm.mim.masking import random_mask, upsample_mask
from timm.models import create_model

from . import hugging_face
from .mae import Ours
from .training import compare_training

NUM_MASKED = 30  # of 49 units


class Transformers(nn.Module):
    """SimMIM model of Hugging Face; it makes its mask from noise like ours, so that the cost is the same."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.repeat = tuple(32 // stride for stride in method.patch_stride)
        backbone, size = method.backbone, method.img_size[0]
        if hasattr(backbone, 'blocks'):
            self.model = ViTForMaskedImageModeling(ViTConfig(
                hidden_size=backbone.embed_dim, num_hidden_layers=len(backbone.blocks),
                num_attention_heads=backbone.blocks[0].attn.num_heads, intermediate_size=4 * backbone.embed_dim,
                image_size=size, patch_size=16, encoder_stride=16, layer_norm_eps=1e-6))
            model_format = 'huggingface-vit-mim'
        else:
            self.model = SwinForMaskedImageModeling(SwinConfig(
                embed_dim=backbone.embed_dim, depths=[len(stage.blocks) for stage in backbone.layers],
                num_heads=[stage.blocks[0].attn.num_heads for stage in backbone.layers], window_size=7,
                image_size=size, patch_size=4, encoder_stride=32, drop_path_rate=0.))
            model_format = 'huggingface-swin-mim'
        hugging_face.copy_weights(method, self.model, model_format)

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mask = upsample_mask(random_mask(noise, NUM_MASKED).view(-1, 7, 7), self.repeat)
        return self.model(images, bool_masked_pos=mask.flatten(1)).loss


def create_modules(model: str, device: torch.device, **options) -> Dict[str, nn.Module]:
    torch.manual_seed(0)
    method = create_mim('simmim', create_model(model, drop_path_rate=0., **options))
    return {name: variant(method).to(device) for name, variant in dict(ours=Ours, transformers=Transformers).items()}


def run(rounds: int, device: torch.device, compiled: bool) -> List[dict]:
    rows = []
    for model, name, batch, shallow in (
            ('vit_small_patch16_224', 'ViT-S/16', 8, dict(depth=3)),
            ('swin_tiny_patch4_window7_224', 'Swin-T', 4, dict(depths=(1, 1, 1, 1)))):
        batch = batch if device.type == 'cpu' else 128
        inputs = torch.randn(batch, 3, 224, 224, device=device), torch.rand(batch, 49, device=device)
        modules = create_modules(model, device)
        for precision in ('float32', 'bfloat16'):
            rows += compare_training('SimMIM', name, modules, inputs, precision, False, rounds)
        if compiled:
            modules = create_modules(model, device, **shallow)
            depth = sum(shallow['depths']) if 'depths' in shallow else shallow['depth']
            rows += compare_training(
                'SimMIM', f'{name} of {depth} blocks', modules, inputs, 'float32', True, rounds)
    return rows
