"""What learning masks minimises: cross-entropy with the labels, and distance from the dense network's answers."""

import torch
from torch.nn import functional

__all__ = ["masking_loss"]


def masking_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    dense_logits: torch.Tensor | None,
    *,
    distillation: float,
    temperature: float,
) -> torch.Tensor:
    """(1 - s) CE(logits, labels) + s T^2 KL(softmax(dense_logits / T) || softmax(logits / T)), the mean over the batch.

    s is `distillation`, T is `temperature`. The factor T^2 keeps the size of the gradients independent of T (Hinton et al.
    2015, "Distilling the Knowledge in a Neural Network", section 2).

    Args:
        logits: of the masked network, float32 (count, classes).
        labels: int64 (count,); only looked at where s < 1.
        dense_logits: of the dense network, float32 (count, classes); only looked at where s > 0.
        distillation: the share of the second term, from 0 to 1.
        temperature: of both distributions in it.
    """
    loss = logits.new_zeros(())
    if distillation < 1:
        assert labels is not None
        loss = loss + (1 - distillation) * functional.cross_entropy(logits, labels)
    if distillation > 0:
        assert dense_logits is not None
        target = functional.log_softmax(dense_logits / temperature, 1)
        soft = functional.log_softmax(logits / temperature, 1)
        divergence = functional.kl_div(soft, target, reduction="batchmean", log_target=True)
        loss = loss + distillation * temperature**2 * divergence
    return loss
