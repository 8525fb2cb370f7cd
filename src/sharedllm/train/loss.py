"""What a step minimises: the next token's loss, and the divergence from a teacher that reads the text itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.train.batch import Batch
from sharedllm.train.samples import ASKED, STUDY, Sample
from sharedllm.train.teacher import Teacher


def sample_loss(teacher: Teacher, distill: float, sample: Sample, batch: Batch, logits: Tensor) -> Tensor:
    """The loss of a sample whose windows are a batch.

    Args:
        distill: share of the divergence from the teacher where text goes on; of questions it is all or nothing.
        logits: [B, t, V], of the last t tokens.
    """
    share = 1.0 if sample.kind == STUDY else 0.0 if sample.kind in ASKED else distill
    if not share:
        return next_token_loss(logits, batch.labels)
    taught = divergence(teacher, sample, logits, batch.ids.shape[1])
    return taught if share == 1 else (1 - share) * next_token_loss(logits, batch.labels) + share * taught


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
