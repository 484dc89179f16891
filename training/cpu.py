"""How torch's threads wait for each other: asleep. Imported before torch, which reads this once, when it is loaded.

By default they spin. On a machine with other work that burns the very time the slowest thread needs: steps of a small
model took 3.5 times as long beside three busy processes, and no longer alone. What the environment says already wins.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
