"""Accuracy of a linear classifier on frozen features."""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F

PENALTIES = (1., 1e-1, 1e-2, 1e-3, 1e-4)  # from strong to weak
_HELD_OUT = 5  # every fifth labelled image decides on the penalty


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
