"""Compare an I-JEPA training step of ours with the algorithm of the authors' code, which uses lightly's predictor."""
import copy
from typing import Dict, List

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from lightly.models.utils import apply_masks

from timm.mim import create_mim
from timm.models import create_model

from .training import compare_training

MOMENTUM = 0.996


class Ours(nn.Module):
    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, images: torch.Tensor, context: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.method(images, mask=(context, targets)).loss

    def after_step(self) -> None:
        self.method.update_target(0.)


class Reference(nn.Module):
    """The algorithm of facebookresearch/ijepa: embed all patches and drop some, predict each target from its own copy
    of the context, and average parameters in a loop.
    """

    def __init__(self, method: nn.Module):
        super().__init__()
        method = copy.deepcopy(method)
        self.encoder, self.target_encoder = method.backbone, method.target_encoder
        predictor = method.predictor
        self.predictor = IJEPAPredictorTIMM(
            predictor.num_patches, len(predictor.blocks), method.predictor_proj.out_features,
            predictor.mask_token.shape[-1], predictor.blocks[0].attn.num_heads)
        self.predictor.decoder.load_state_dict(predictor.state_dict())
        self.predictor.predictor_embed.load_state_dict(method.predictor_embed.state_dict())
        self.predictor.predictor_proj.load_state_dict(method.predictor_proj.state_dict())

    def forward(self, images: torch.Tensor, context: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        masks = list(targets.unbind(1))
        with torch.no_grad():
            features = self.encode(self.target_encoder, images)
            features = apply_masks(F.layer_norm(features.float(), features.shape[-1:]), masks)
        x = self.encode(self.encoder, images, context)
        return F.smooth_l1_loss(self.predictor(x, context, masks).float(), features)

    def encode(self, encoder: nn.Module, images: torch.Tensor, keep: torch.Tensor = None) -> torch.Tensor:
        x = encoder.patch_embed(images) + encoder.pos_embed
        return encoder.norm(encoder.blocks(x if keep is None else apply_masks(x, [keep])))

    @torch.no_grad()
    def after_step(self) -> None:
        for source, target in zip(self.encoder.parameters(), self.target_encoder.parameters()):
            target.mul_(MOMENTUM).add_((1 - MOMENTUM) * source)


def create_modules(method: nn.Module, device: torch.device) -> Dict[str, nn.Module]:
    return {name: variant(method).to(device) for name, variant in dict(ours=Ours, reference=Reference).items()}


def run(rounds: int, device: torch.device, compiled: bool) -> List[dict]:
    rows = []
    batch = 8 if device.type == 'cpu' else 128
    for depth, predictor_depth, precisions, compile_it in (
            (12, 6, ('float32', 'bfloat16'), False), (3, 2, ('float32',), True)):
        if compile_it and not compiled:
            continue
        torch.manual_seed(0)
        model = create_model('vit_small_patch16_224', class_token=False, global_pool='avg', depth=depth)
        method = create_mim('ijepa', model, predictor_depth=predictor_depth)
        masks = method.make_mask(torch.rand(method.noise_shape(batch)))
        inputs = [x.to(device) for x in (torch.randn(batch, 3, 224, 224), *masks)]
        name = f'ViT-S/16 of {depth} + {predictor_depth} blocks' if compile_it else 'ViT-S/16'
        for precision in precisions:
            rows += compare_training(
                'I-JEPA', name, create_modules(method, device), inputs, precision, compile_it, rounds)
    return rows
