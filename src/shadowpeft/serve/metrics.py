"""What Prometheus reads at `/metrics`: counts and times, and no word of a prompt or answer."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Replies by endpoint, model and status.", "endpoint model status"
        )
        self.routes = self._counter("routes", "Answers by who gave them and why.", "route reason")
        self.tokens = self._counter("tokens", "Tokens read and written.", "kind")
        self.left = self._counter("clients_left", "Clients that left before their answer was complete.")
        self.upstream = self._counter(
            "upstream_failures", "Failed tries by server and kind.", "upstream kind"
        )
        self.seconds = self._histogram("request_seconds", "Time from request to the end of its answer.")
        self.first = self._histogram(
            "first_piece_seconds", "Time from request to the first piece of its answer."
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for when it is read."""
        Gauge(f"shadowpeft_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """Return one number; 0 if nothing was counted."""
        return self.registry.get_sample_value(f"shadowpeft_{name}", labels) or 0.0

    def _counter(self, name: str, text: str, labels: str = "") -> Counter:
        return Counter(f"shadowpeft_{name}", text, labels.split(), registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"shadowpeft_{name}", text, ["endpoint"], buckets=_SECONDS, registry=self.registry)
