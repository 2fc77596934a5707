"""Classifiers of frozen features: nearest neighbours, a linear layer, and attention pooling over tokens."""

import math
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import AttentionPoolLatent

_CHUNK = 1024  # images that are compared with all others at a time

PENALTIES = (1., 1e-1, 1e-2, 1e-3, 1e-4)  # from strong to weak
_HELD_OUT = 5  # every fifth labelled image decides on the penalty

_EPOCHS = 20
_MIN_STEPS = 200
_BATCH_SIZE = 256
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_HEAD_DIM = 64


@torch.no_grad()
def knn_predict(
        train_features: torch.Tensor,
        train_labels: torch.Tensor,
        features: torch.Tensor,
        num_classes: int,
        num_neighbors: int = 20,
        temperature: float = 0.07,
) -> torch.Tensor:
    """Predict classes by the weighted vote of the nearest neighbours in cosine similarity.

    A neighbour counts exp(similarity / temperature), as in Wu et al., "Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination" (2018), section 3.4, with the 20 neighbours and the temperature of DINO (Caron et al.,
    2021, appendix F.4 and `eval_knn.py`).

    Args:
        train_features: Features [N, C] of labelled images.
        train_labels: Their classes [N].
        features: Features [M, C] of other images.
        num_classes: Number of classes.
        num_neighbors: Number of neighbours; all labelled images where there are fewer.
        temperature: Temperature of the weights.

    Returns:
        Predicted classes [M].
    """
    train_features = F.normalize(train_features.float(), dim=1)
    predicted = []
    for chunk in features.float().split(_CHUNK):
        similarity = F.normalize(chunk, dim=1) @ train_features.T
        nearest = similarity.topk(min(num_neighbors, len(train_features)), dim=1)
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        votes.scatter_add_(1, train_labels[nearest.indices], (nearest.values / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def linear_predict(
        train_features: torch.Tensor,
        train_labels: torch.Tensor,
        features: torch.Tensor,
        num_classes: int,
) -> torch.Tensor:
    """Predict classes by logistic regression on standardised features.

    The penalty is the one that does best on a fifth of the labelled images, after training on the others; then all of
    them are used.

    Args:
        train_features: Features [N, C] of labelled images.
        train_labels: Their classes [N].
        features: Features [M, C] of other images.
        num_classes: Number of classes.

    Returns:
        Predicted classes [M].
    """
    train_features, features = standardize(train_features.float(), features.float())
    penalty = _choose_penalty(train_features, train_labels, num_classes)
    weight, bias = fit_logistic_regression(train_features, train_labels, num_classes, penalty)
    return F.linear(features, weight, bias).argmax(dim=1)


def standardize(train_features: torch.Tensor, features: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bring every feature to mean 0 and standard deviation 1 over the labelled images, the others alike."""
    mean, std = train_features.mean(dim=0), train_features.std(dim=0, correction=0).clamp(min=1e-6)
    return (train_features - mean) / std, (features - mean) / std


@torch.enable_grad()
def fit_logistic_regression(
        features: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        penalty: float,
        start: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
        max_iterations: int = 200,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Fit a multinomial logistic regression by L-BFGS.

    Minimises the mean cross entropy plus `penalty / 2` times the squared weights; the bias is free. This is
    scikit-learn's `LogisticRegression(C=1 / (penalty * N))`.

    Args:
        features: Features [N, C].
        labels: Classes [N].
        num_classes: Number of classes K.
        penalty: Strength of the penalty.
        start: Weight and bias to start from, zeros if None.
        max_iterations: Iterations after which to stop in any case.

    Returns:
        Weight [K, C] and bias [K].
    """
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn='strong_wolfe',
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _choose_penalty(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
    held_out, rest = order[::_HELD_OUT], order[torch.arange(len(order)) % _HELD_OUT != 0]
    if len(rest) == 0:
        return PENALTIES[0]
    best, best_correct, fitted = PENALTIES[0], -1, None
    for penalty in PENALTIES:
        fitted = fit_logistic_regression(features[rest], labels[rest], num_classes, penalty, start=fitted)
        correct = int((F.linear(features[held_out], *fitted).argmax(dim=1) == labels[held_out]).sum())
        if correct > best_correct:
            best, best_correct = penalty, correct
    return best


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
