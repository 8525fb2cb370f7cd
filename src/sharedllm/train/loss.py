"""What a step minimises: the next token's loss, and the divergence from a teacher that reads the text itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.train.samples import Sample
from sharedllm.train.teacher import Teacher


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats of the labels [B, T] (-100: not counted), each predicted by the logits before it.

    Args:
        logits: [B, t, V], of the last t tokens; labels before them are not counted.
    """
    labels = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())


def divergence(teacher: Teacher, sample: Sample, logits: Tensor, width: int) -> Tensor:
    """Mean KL(teacher || student) in nats over the targets of all windows of a sample.

    The teacher reads token by token what the student reads compressed (context distillation): what a window says it is
    shown, or all of its chunks and the window.

    Args:
        logits: the student's, [B, t, V], of the last t of the `width` tokens to which windows are padded at the right.
    """
    total, count = logits.new_zeros((), dtype=torch.float32), 0
    before = width - logits.shape[1]  # tokens of a window without logits, which predict no target
    for row, w in enumerate(sample.windows):
        end = len(w.ids) - 1 - before  # a token is predicted by the logits before it
        student = logits[row, end - w.targets : end].float().log_softmax(-1)
        total = total + F.kl_div(student, teacher.logprobs(sample, w), reduction="sum", log_target=True)
        count += w.targets
    return total / count
