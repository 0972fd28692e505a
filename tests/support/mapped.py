"""Files as an engine has them: mapped."""

import mmap


def mapped(data: bytes) -> mmap.mmap | bytes:
    """Return a mapping of these bytes; the bytes themselves when there are none, which cannot be mapped."""
    if not data:
        return data
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory
