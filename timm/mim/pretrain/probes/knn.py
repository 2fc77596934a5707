"""Accuracy of the nearest neighbours: nothing is trained, and nothing is to be tuned."""
import torch
import torch.nn.functional as F

_CHUNK = 1024  # images that are compared with all others at a time


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
