"""The frozen model's layers divided over processes (FSDP 2), for models that one device does not hold.

Before a layer runs, the processes exchange their shares of its weights; afterwards each drops what is not its own. That is
torch's `fully_shard`, layer by layer: the lower model calls layers without the module around them, so each has to stand alone.
Embedding, head and norms stay whole, and so do the projections that an adapter of low rank reads itself.
"""

from __future__ import annotations

from sharedllm.errors import UsageError
from sharedllm.model import SharedLLM
from sharedllm.processes import Processes
from sharedllm.projection import Projection
from sharedllm.weights import is_plain


def shard(llm: SharedLLM, processes: Processes) -> None:
    """Divide the weights of all layers of `llm` over the processes, and put all of it on their devices.

    From then on all processes must run the same layers in the same order.

    Raises:
        UsageError: the weights are codes of a quantisation.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    projections = [m for m in llm.injection.modules() if isinstance(m, Projection)]
    read = {weight.untyped_storage().data_ptr() for p in projections for weight in p.frozen}
    for layer in llm.parts.layers:
        weights = list(layer.parameters())
        if not all(map(is_plain, weights)):
            raise UsageError(
                "a quantised model cannot be divided; load it without quantisation, or do without FSDP and ZeRO 3."
            )
        whole = {w for w in weights if w.ndim < 2 or w.untyped_storage().data_ptr() in read}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    llm.model.to(processes.device)
    llm.injection.to(processes.device)
    for projection in projections:
        projection.frozen = [weight.to(processes.device) for weight in projection.frozen]
