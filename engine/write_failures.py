"""Say what to do about a file that cannot be written."""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EMFILE: "close files, or raise the limit (`ulimit -n`)",
    errno.ENFILE: "close files",
    errno.EIO: "check the disk",
}


def remedy_for(error: OSError, otherwise: str) -> str:
    """Return what to do: by the error's number if that says it, or else ``otherwise``."""
    found = _REMEDIES.get(error.errno or 0)
    return f"{found}, or {otherwise}" if found else otherwise


def sentence(text: str) -> str:
    """Return a text with a capital letter."""
    return text[:1].upper() + text[1:]
