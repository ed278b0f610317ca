"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """One service's own registry, so that several may live in a process."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("lexlip_requests", "Answers sent", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "lexlip_request_seconds", "From a request's head to its answer's end", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "lexlip_stage_seconds", "Parts of the work, waiting for a thread included", ["stage"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.active = Gauge("lexlip_active_requests", "Requests being worked on", registry=registry)
        self.reloads = Counter("lexlip_reloads", "New states of the index", ["outcome"], registry=registry)
        self.generation = Gauge("lexlip_index_generation", "State of the index that is served", registry=registry)
        self.documents = Gauge("lexlip_index_documents", "Documents that can be found", registry=registry)
