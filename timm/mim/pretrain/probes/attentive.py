"""Accuracy of a classifier that attends to frozen tokens, for encoders that no single vector of sums up."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import AttentionPoolLatent

_EPOCHS = 20
_MIN_STEPS = 200
_BATCH_SIZE = 256
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_HEAD_DIM = 64


class AttentiveClassifier(nn.Sequential):
    """A learned query attends to tokens [B, N, C], a linear layer classifies what it gathers.

    Attentive probing is from Chen et al., "Context Autoencoder for Self-Supervised Representation Learning" (2022),
    section 4.3; the pooling with an MLP is that of V-JEPA (Bardes et al., 2024).

    Args:
        channels: Width of a token.
        num_classes: Number of classes.
    """

    def __init__(self, channels: int, num_classes: int):
        num_heads = max(1, channels // _HEAD_DIM)
        while channels % num_heads:
            num_heads -= 1
        super().__init__(
            nn.LayerNorm(channels),
            AttentionPoolLatent(channels, num_heads=num_heads, norm_layer=nn.LayerNorm),
            nn.LayerNorm(channels),
            nn.Linear(channels, num_classes),
        )


def attentive_predict(
        train_tokens: torch.Tensor,
        train_labels: torch.Tensor,
        tokens: torch.Tensor,
        num_classes: int,
        device: torch.device,
) -> torch.Tensor:
    """Predict classes by a classifier that attends to tokens; the same numbers give the same predictions.

    Args:
        train_tokens: Tokens [N, L, C] of labelled images, in main memory.
        train_labels: Their classes [N], in main memory.
        tokens: Tokens [M, L, C] of other images.
        num_classes: Number of classes.
        device: Device to train on.

    Returns:
        Predicted classes [M], in main memory.
    """
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        classifier = AttentiveClassifier(train_tokens.shape[-1], num_classes).to(device)
        _train(classifier, train_tokens, train_labels, device)
    classifier.eval()
    with torch.no_grad():
        scores = [classifier(batch.to(device).float()).cpu() for batch in tokens.split(_BATCH_SIZE)]
    return torch.cat(scores).argmax(dim=1)


def _train(classifier: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, device: torch.device) -> None:
    batch_size = min(_BATCH_SIZE, len(tokens))
    steps_per_epoch = -(-len(tokens) // batch_size)
    num_steps = max(_MIN_STEPS, _EPOCHS * steps_per_epoch)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(1., step / num_steps))) / 2)
    step = 0
    while step < num_steps:
        for batch in torch.randperm(len(tokens)).split(batch_size):
            loss = F.cross_entropy(classifier(tokens[batch].to(device).float()), labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
