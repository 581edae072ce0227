"""Which kind of data set a file is, told from its first bytes. Nothing is unpickled or decoded."""

from __future__ import annotations

from typing import BinaryIO

from app.errors import Unprocessable

NPZ, SAFETENSORS = "npz", "safetensors"


def tell_format(stream: BinaryIO) -> str:
    """`npz` or `safetensors`; raises `Unprocessable` (`wrong_format`) for anything else."""
    head = stream.read(16)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return NPZ
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return SAFETENSORS
    raise Unprocessable(
        "neither .npz nor .safetensors",
        code="wrong_format",
        hint="in Python: numpy.savez('data.npz', x=inputs, y=labels)",
    )
