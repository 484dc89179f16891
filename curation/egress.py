"""Where data may leave to: nowhere beyond this machine but the hosts that ``[egress]`` lists.

Pure words: no name is resolved and nothing is opened here. Whoever speaks to a server asks first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from curation.errors import UsageError


def check_url(url: str, allow: Sequence[str] = ()) -> str:
    """``url`` without its last slash. Raises :class:`UsageError` where it must not be spoken to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UsageError(
            "this is no address of a server",
            where=f"{parts.scheme}://{parts.hostname}" if parts.hostname else url,
            next="Write it like http://127.0.0.1:8080, without a name or password in it",
        )
    if not is_loopback(parts.hostname) and parts.hostname not in allow:
        raise UsageError(
            f"{parts.hostname} is beyond this machine and not listed under [egress]",
            where=url,
            next=f'Add it in tilth.toml: allow = ["{parts.hostname}"]',
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine and cannot name another one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
