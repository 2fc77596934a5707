"""Compare an MAE training step of ours with transformers, lightly, and the algorithm of the authors' code."""
import copy
from typing import Dict, List

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from timm.mim import create_mim
from timm.models import create_model

from . import hugging_face
from .training import compare_training


class Ours(nn.Module):
    """A method of `timm.mim`, with the loss as its output."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method
        self.method.fast_path = True

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.method(images, noise=noise).loss


class Transformers(nn.Module):
    def __init__(self, method: nn.Module):
        super().__init__()
        blocks, decoder = method.backbone.blocks, method.decoder.blocks
        width, decoder_width = method.backbone.embed_dim, method.decoder.mask_token.shape[-1]
        self.model = ViTMAEForPreTraining(ViTMAEConfig(
            hidden_size=width, num_hidden_layers=len(blocks), num_attention_heads=blocks[0].attn.num_heads,
            intermediate_size=4 * width, image_size=method.img_size, patch_size=method.patch_stride[0],
            layer_norm_eps=1e-6, decoder_hidden_size=decoder_width, decoder_num_hidden_layers=len(decoder),
            decoder_num_attention_heads=decoder[0].attn.num_heads, decoder_intermediate_size=4 * decoder_width,
            norm_pix_loss=True))
        hugging_face.copy_weights(method, self.model, 'huggingface-vitmae')

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.model(images, noise=noise).loss


class Lightly(nn.Module):
    """lightly's modules, combined as in its documentation."""

    def __init__(self, method: nn.Module):
        super().__init__()
        method = copy.deepcopy(method)
        self.patch_size = method.patch_stride[0]
        self.num_visible = 1 + method.num_visible
        self.backbone = MaskedVisionTransformerTIMM(
            method.backbone, weight_initialization='skip', pos_embed_initialization='skip')
        self.backbone.mask_token.requires_grad_(False)
        decoder = method.decoder
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            decoder.num_patches, decoder.mask_token.shape[-1], len(decoder.blocks), decoder.blocks[0].attn.num_heads)
        self.decoder.load_state_dict(decoder.state_dict())
        self.decoder_embed, self.decoder_pred = method.decoder_embed, method.decoder_pred

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        order = F.pad(noise, (1, 0), value=-1.).argsort(dim=1)  # keep the class token, which is token 0
        keep, mask = order[:, :self.num_visible], order[:, self.num_visible:]
        embedded = self.decoder_embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), order.shape[1])).type_as(embedded)
        decoded = self.decoder(utils.set_at_index(tokens, keep, embedded))
        prediction = self.decoder_pred(utils.get_at_index(decoded, mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), mask - 1)
        return F.mse_loss(prediction.float(), utils.normalize_mean_var(target))


class Reference(nn.Module):
    """The algorithm of facebookresearch/mae with timm's blocks: embed all patches, shuffle, encode the visible ones,
    unshuffle, predict all patches, and mask the loss.
    """

    def __init__(self, method: nn.Module):
        super().__init__()
        method = copy.deepcopy(method)
        self.num_visible, self.patch_size = method.num_visible, method.patch_stride[0]
        self.encoder, self.decoder = method.backbone, method.decoder
        self.embed, self.predict = method.decoder_embed, method.decoder_pred

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        encoder, decoder = self.encoder, self.decoder
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
        width = x.shape[-1]
        x = x.gather(1, shuffle[:, :self.num_visible, None].repeat(1, 1, width))
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = encoder.norm(encoder.blocks(torch.cat([first, x], dim=1)))

        x = self.embed(x)
        missing = decoder.mask_token.repeat(len(x), restore.shape[1] - self.num_visible, 1)
        patches = torch.cat([x[:, 1:], missing], dim=1)
        patches = patches.gather(1, restore[:, :, None].repeat(1, 1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + decoder.pos_embed
        prediction = self.predict(decoder.norm(decoder.blocks(x)))[:, 1:]

        target = utils.patchify(images, self.patch_size)
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
        mask = torch.ones_like(noise)
        mask[:, :self.num_visible] = 0
        mask = mask.gather(1, restore)
        error = ((prediction - target) ** 2).mean(dim=-1)
        return (error * mask).sum() / mask.sum()


def create_modules(model: str, device: torch.device, depth: int = 0, **options) -> Dict[str, nn.Module]:
    torch.manual_seed(0)
    method = create_mim('mae', create_model(model, **(dict(depth=depth) if depth else {})), **options)
    variants = dict(ours=Ours, transformers=Transformers, lightly=Lightly, reference=Reference)
    return {name: variant(method).to(device) for name, variant in variants.items()}


def run(rounds: int, device: torch.device, compiled: bool) -> List[dict]:
    """Compare training steps: eager in both precisions, and compiled for a shallower model, which compiles faster."""
    rows = []
    batch = 8 if device.type == 'cpu' else 256
    images, noise = torch.randn(batch, 3, 224, 224, device=device), torch.rand(batch, 196, device=device)
    modules = create_modules('vit_small_patch16_224', device)
    for precision in ('float32', 'bfloat16'):
        rows += compare_training('MAE', 'ViT-S/16', modules, (images, noise), precision, False, rounds)
    if compiled:
        modules = create_modules('vit_small_patch16_224', device, depth=3, decoder_depth=2)
        rows += compare_training(
            'MAE', 'ViT-S/16 of 3 + 2 blocks', modules, (images, noise), 'float32', True, rounds)
    return rows
