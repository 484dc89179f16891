"""A chat template is a program by a base's author. It is tried once, where it can hurt nobody, before anything trusts it.

The transformers library renders templates in Jinja's sandbox, which keeps them from calling what they should not, but not
from running for ever or filling the memory. So the first rendering is another process's, with limits on both.
"""

from __future__ import annotations

import functools
import subprocess
import sys

from curation.errors import IntegrityError

SECONDS = 1
"""Processor time that one rendering may take; a real one takes milliseconds."""

_WAIT = 60.0  # on the clock, interpreter and imports included

# Exit codes of the trial. A template that refuses the trial's conversation in its own words is none the worse for it.
_TOO_MUCH = 3
_TRIAL = f"""
import math, resource, sys, time
from transformers.utils.chat_template_utils import render_jinja_template
spent, megabyte = math.ceil(time.process_time()), 1 << 20
resource.setrlimit(resource.RLIMIT_CPU, (spent + {SECONDS}, spent + {SECONDS} + 1))
resource.setrlimit(resource.RLIMIT_AS, (4096 * megabyte, 4096 * megabyte))
asked = [{{"role": "user", "content": "Where is my parcel?"}}]
try:
    said, _ = render_jinja_template([asked], chat_template=sys.stdin.read(), add_generation_prompt=True,
                                    bos_token="", eos_token="")
    sys.exit({_TOO_MUCH} if len(said[0]) > megabyte else 0)
except (MemoryError, OverflowError):
    sys.exit({_TOO_MUCH})
except Exception:
    sys.exit(0)
"""


@functools.lru_cache(maxsize=16)
def try_out(template: str) -> None:
    """Render one question by ``template`` under limits. Raises ``IntegrityError`` where they do not suffice."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            input=template,
            text=True,
            capture_output=True,
            timeout=_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused("does not end") from None
    if ended.returncode == _TOO_MUCH:
        raise _refused("makes more of one short question than memory or a prompt could hold")
    if ended.returncode < 0:  # by the signal of the limit
        raise _refused(f"takes more than {SECONDS} s of processor time for one short question")
    if ended.returncode:
        raise _refused(f"could not be tried: {ended.stderr.strip().splitlines()[-1:]}")


def _refused(why: str) -> IntegrityError:
    return IntegrityError(f"the base's chat template {why}", next="Use a base whose template you can trust")
