"""Which journal a SQLite file may use. Pure tables; nothing here opens a database.

SQLite 3.7.0 to 3.51.2 can lose acknowledged commits when several processes write in WAL mode (the WAL-reset bug, fixed
in 3.51.3 and backported to 3.50.7 and 3.44.6; https://sqlite.org/wal.html). WAL also needs shared memory, which network
file systems do not give. Everywhere else the rollback journal is used, which is slower and always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_FIXED_IN = {(3, 44): 6, (3, 50): 7}  # backports; from 3.51.3 on every version is fixed
_FIXED_FROM = (3, 51, 3)
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb",
    "smb2",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "glusterfs",
    "gfs2",
}
_NETWORK_FUSE = {
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
    "fuse.ceph",
    "fuse.davfs",
}


def choose_journal(sqlite_version: Sequence[int], network_fs: bool) -> str:
    """``"wal"`` on builds without the WAL-reset bug and on local disks, else ``"delete"`` (the rollback journal).

    >>> choose_journal((3, 40, 1), False), choose_journal((3, 51, 3), False), choose_journal((3, 51, 3), True)
    ('delete', 'wal', 'delete')
    """
    major, minor, patch = (*sqlite_version, 0, 0, 0)[:3]
    backport = _FIXED_IN.get((major, minor))
    fixed = (major, minor, patch) >= _FIXED_FROM or (backport is not None and patch >= backport)
    return "wal" if fixed and not network_fs else "delete"


def network_filesystem(path: str | Path, mounts: str | None = None) -> bool:
    """Whether ``path`` lies on a network file system, by the longest mount point that holds it.

    ``mounts`` is text in the form of ``/proc/mounts``; by default this machine's. Where there is none (no Linux), the
    answer is ``True``: the rollback journal is right everywhere.
    """
    table = _read_mounts() if mounts is None else mounts
    if table is None:
        return True
    kinds = dict(_mount(line) for line in table.splitlines() if len(line.split()) >= 3)
    here = Path(path).resolve()
    for folder in (here, *here.parents):
        if str(folder) in kinds:
            return kinds[str(folder)] in _NETWORK | _NETWORK_FUSE
    return False


def _read_mounts() -> str | None:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _mount(line: str) -> tuple[str, str]:
    _device, folder, kind = line.split()[:3]
    return folder.replace("\\040", " "), kind
