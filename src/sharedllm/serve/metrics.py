"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"sharedllm_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"sharedllm_{name}", text, registry=registry)

        def seconds(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"sharedllm_{name}_seconds", text, labels, buckets=SECONDS, registry=registry)

        self.requests = counter("requests", "Requests answered.", ("route", "status"))
        self.request_seconds = seconds("request", "Time of a request.", ("route",))
        self.refused = counter("queue_refused", "Requests that the full queue refused.")
        self.waiting = gauge("waiting_requests", "Requests in the queue.")
        self.rows = gauge("decoding_rows", "Answers that decode together.")
        self.step_seconds = seconds("step", "Time of one token for all rows.")
        self.search_seconds = seconds("search", "Time of one search of a context.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, contexts included.")
        self.generated_tokens = counter("generated_tokens", "Tokens of answers.")
        self.read_tokens = counter("read_tokens", "Tokens read into contexts.")
        self.reading_seconds = counter("reading_seconds", "Time spent reading them.")
        self.prompt_hits = counter("prompt_hits", "Long prompts that were known, whole or in part.")
        self.prompt_misses = counter("prompt_misses", "Long prompts that were not.")
        self.known_tokens = counter("known_tokens", "Tokens that were not read again.")
        self.saved_seconds = counter("saved_seconds", "Time that reading them again would have taken.")
        self.contexts = gauge("contexts", "Contexts that are kept.")
        self.disk_errors = counter("disk_errors", "Contexts that could not be written.")
        self.memory_bytes = gauge("contexts_memory_bytes", "Of contexts in memory.")
