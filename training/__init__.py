"""From a frozen snapshot to an adapter and its scores: the only place that knows torch."""

import os


def settle_environment() -> None:
    """Set what libraries read once, when they are imported. What somebody has set already stays.

    The libraries of model hubs look for a newer configuration, a kernel or a model card even for local models: they
    are kept from phoning out. Threads that wait for each other sleep instead of spinning: on a machine that does other
    work too, spinning made the same training ten times slower.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


settle_environment()
