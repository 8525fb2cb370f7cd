"""A real Ray cluster of two nodes, one of which is lost while it works."""

from __future__ import annotations

import time

import pytest

from sharedllm import ray_pool as pools
from sharedllm.ray_pool import ray_pool

pytestmark = pytest.mark.processes


@pytest.fixture
def nodes():
    """A cluster and its second node; this process is on the first."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sharedllm[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def test_what_a_lost_node_was_at_is_done_by_the_other(nodes, monkeypatch):
    class Worker:
        def __init__(self, setup):
            import ray

            self.node = ray.get_runtime_context().get_node_id()

        def where(self):
            return self.node

        def work(self, item):
            time.sleep(1)
            return item, self.node

    monkeypatch.setattr(pools, "ROOM_SECONDS", 3)
    monkeypatch.setattr(pools, "LOOK_SECONDS", 1)
    cluster, second = nodes
    with ray_pool(Worker, {}, workers=2) as pool:
        assert len(set(pool.call("where"))) == 2, "a worker on each node"
        found = {}
        for item, result in pool.map("work", range(8)):
            if not found:
                cluster.remove_node(second, allow_graceful=False)
            assert result[0] == item
            found[item] = result[1]
        assert len(found) == 8 and pool.workers == 1
