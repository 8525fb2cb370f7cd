"""What a step minimises: the next token's loss, and the divergence from a teacher that reads the text itself."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.model import SharedLLM
from sharedllm.train.samples import Sample


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats of the labels [B, T] (-100: not counted), each predicted by the logits before it.

    Args:
        logits: [B, t, V], of the last t tokens; labels before them are not counted.
    """
    labels = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())


def divergence(llm: SharedLLM, sample: Sample, logits: Tensor, width: int) -> Tensor:
    """Mean KL(teacher || student) in nats over the targets of all windows of a sample.

    The teacher is the same model without the adapter, reading token by token what the student reads compressed (context
    distillation): what a window says it is shown, or all of its chunks and the window.

    Args:
        logits: the student's, [B, t, V], of the last t of the `width` tokens to which windows are padded at the right.
    """
    total, count = logits.new_zeros((), dtype=torch.float32), 0
    before = width - logits.shape[1]  # tokens of a window without logits, which predict no target
    for row, w in enumerate(sample.windows):
        shown = w.shown
        if shown is None:
            shown = np.concatenate([sample.context[: w.chunks * llm.config.chunk_length], w.ids])
        teacher = _plain_logits(llm, shown, w.targets).float().log_softmax(-1)
        end = len(w.ids) - 1 - before  # a token is predicted by the logits before it
        student = logits[row, end - w.targets : end].float().log_softmax(-1)
        total = total + F.kl_div(student, teacher, reduction="sum", log_target=True)
        count += w.targets
    return total / count


@torch.no_grad()
def _plain_logits(llm: SharedLLM, ids: np.ndarray, targets: int) -> Tensor:
    """Logits [targets, V] by which the model without the adapter predicts the last `targets` of `ids`."""
    with llm.injection.reading(None):
        read = torch.from_numpy(ids).to(llm.device)[None]
        logits: Tensor = llm.model(input_ids=read, use_cache=False, logits_to_keep=targets + 1).logits
    return logits[0, :-1]
