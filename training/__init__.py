"""From a frozen snapshot to an adapter and its scores: the only place that knows torch."""

import os


def stay_offline() -> None:
    """Keep the libraries of model hubs from phoning out: they read these variables once, when they are imported.

    Some of them look for a newer configuration, a kernel or a model card on every call, also for local models.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        os.environ.setdefault(name, "1")


stay_offline()
