"""Models that are called in a way of their own, built from plain keyword arguments. Imported by both processes."""
import torch
import torch.nn as nn

from timm.models.convit import ConVit
from timm.models.gemma4_vit import Gemma4VitClassifier
from timm.models.naflexvit import NaFlexVit, batch_patchify
from timm.models.volo import VOLO

from probe import build


def headless(class_path, prune=None, input_size=None, **kwargs):
    """A model whose head is not used: an encoder, one that is pruned to blocks, or resized after it was built."""
    model = build(class_path, kwargs)
    if input_size is not None:
        model.set_input_size(img_size=input_size)
    if prune is not None:
        model.prune_intermediate_layers(list(prune))
    model.forward_head = lambda x, **kwargs: x
    return model


def convit_hybrid(img_size, in_chans=3, **kwargs):
    """A ConVit with a convolutional stem."""
    return ConVit(img_size=img_size, in_chans=in_chans, hybrid_backbone=nn.Conv2d(in_chans, 12, 8, 8), **kwargs)


class NaFlexBatch(nn.Module):
    """Gives images to a model as a NaFlex batch, the second of them with a column of patches less, and padding.

    Args:
        model: A model with NaFlex mode.
        patch_size: Patch size (height, width).
        attention_mask: Give an attention mask too, random as the images are.
        unflattened: Patches keep their height and width.
    """

    def __init__(self, model, patch_size, attention_mask=False, unflattened=False):
        super().__init__()
        self.model = model
        self.patch_size = patch_size
        self.attention_mask = attention_mask
        self.unflattened = unflattened

    def batch(self, images):
        patches, (height, width) = batch_patchify(images, self.patch_size, pad=False)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        coordinates = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
        patch_coord = coordinates.repeat(2, 1, 1)
        patch_valid = torch.ones(2, height * width, dtype=torch.bool)
        # padding stands last, as the collator puts it
        narrow = coordinates[:, 1] < width - 1
        patch_coord[1] = torch.cat([coordinates[narrow], torch.zeros_like(coordinates[~narrow])])
        patch_valid[1] = torch.cat([narrow[narrow], narrow[~narrow]])
        patches = patches * patch_valid.unsqueeze(-1)
        if self.unflattened:
            patches = patches.unflatten(-1, (*self.patch_size, -1))
        batch = dict(patches=patches, patch_coord=patch_coord, patch_valid=patch_valid)
        if self.attention_mask:
            num_tokens = self.model.num_prefix_tokens + height * width
            mask = images.flatten()[:num_tokens ** 2].reshape(num_tokens, num_tokens) > 0.5
            batch['attn_mask'] = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -1e4)
        return batch

    def forward_features(self, images):
        batch = self.batch(images)
        return self.model.forward_features(batch.pop('patches'), **batch)

    def embed(self, images):
        return self.model.embed(self.batch(images))

    def forward_stages(self, embedded):
        return self.model.forward_stages(embedded)


def naflex_batch(attention_mask=False, unflattened=False, checkpointing=False, **kwargs):
    """NaFlexVit in NaFlex mode."""
    model = NaFlexVit(**kwargs)
    model.set_grad_checkpointing(checkpointing)
    return NaFlexBatch(model, (8, 8), attention_mask, unflattened)


def gemma4_batch(**kwargs):
    """Gemma4 with padded patches."""
    return NaFlexBatch(Gemma4VitClassifier(**kwargs), (8, 8))


class ForwardTrain(nn.Module):
    """VOLO through its forward pass of token labelling."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward_features(self, images):
        return self.model.forward_train(images)


def volo_forward_train(**kwargs):
    return ForwardTrain(VOLO(**kwargs))
