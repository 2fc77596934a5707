"""Compare our training steps with the time of their matrix products and attentions alone."""
from typing import List

import torch

from timm.mim import create_mim
from timm.models import create_model

from .mae import Ours
from .products import against_products
from .training import TrainingStep


def training_step(method: str, model: str, batch: int, precision: str, device: torch.device, **options) -> TrainingStep:
    """Return our training step of a method on a model."""
    torch.manual_seed(0)
    module = create_mim(method, create_model(model, drop_path_rate=0., **options)).to(device)
    noise = torch.rand(module.noise_shape(batch), device=device)
    images = torch.randn(batch, 3, *module.img_size, device=device)
    return TrainingStep(Ours(module), (images, noise), precision, compiled=False)


def run(rounds: int, device: torch.device) -> List[dict]:
    rows = []
    batch = 8 if device.type == 'cpu' else 256
    for method, model, name in (
            ('mae', 'vit_small_patch16_224', 'MAE, ViT-S/16'),
            ('simmim', 'vit_small_patch16_224', 'SimMIM, ViT-S/16'),
            ('simmim', 'swin_tiny_patch4_window7_224', 'SimMIM, Swin-T'),
            ('ijepa', 'vit_small_patch16_224', 'I-JEPA, ViT-S/16')):
        for precision in ('float32', 'bfloat16'):
            step = training_step(method, model, batch, precision, device)
            case = f'{name}, {precision}, eager, batch {batch}'
            rows += against_products('floor', case, step, max(3, rounds // 4), device)
    return rows
