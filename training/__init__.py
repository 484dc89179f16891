"""From a frozen snapshot to an adapter and its scores: the only place that knows torch."""
