"""Windows of one sample side by side, as the model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharedllm.train.samples import Sample

NO_TARGET = -100  # what cross_entropy ignores


@dataclass
class Batch:
    """Windows of one sample: ids, labels, where the prompts and where the questions are [B, T]."""

    ids: Tensor
    labels: Tensor
    prompt: Tensor
    question: Tensor

    @classmethod
    def of(cls, sample: Sample, device: torch.device) -> Batch:
        """A sample's windows, padded at the right, where causal attention never looks."""
        width = max(len(w.ids) for w in sample.windows)
        ids = torch.zeros(len(sample.windows), width, dtype=torch.long)
        labels = torch.full_like(ids, NO_TARGET)
        prompt, question = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, w in enumerate(sample.windows):
            ids[row, : len(w.ids)] = torch.from_numpy(w.ids)
            labels[row, len(w.ids) - w.targets : len(w.ids)] = torch.from_numpy(w.ids[len(w.ids) - w.targets :])
            prompt[row, : len(w.ids) - w.targets] = 1
            if w.question is not None:
                question[row, : len(w.ids)] = torch.from_numpy(w.question)
        return cls(*(x.to(device) for x in (ids, labels, prompt, question)))

    def rows(self, rows: Sequence[int], counted: int) -> Batch:
        """Some of the rows, of which those after the first `counted` have no targets."""
        at = torch.tensor(rows, device=self.ids.device)
        batch = Batch(*(x[at] for x in (self.ids, self.labels, self.prompt, self.question)))
        batch.labels[counted:] = NO_TARGET
        return batch
