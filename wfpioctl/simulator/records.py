"""The redirect state machine's data: a connection's records, and what a driver sees in them.

Pure: no socket, no engine.  The byte form is the simulator's own; to a proxy it is opaque (W26).
"""

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .. import _wfpioctl

_HEAD = struct.Struct("<QI")  # flow id, number of records
_RECORD = struct.Struct("<QI")  # redirect handle, context size in bytes
MARK_SIZE = 16  # in front of the payload; the data plane writes and checks it


class RedirectState(enum.Enum):
    """What ``FwpsQueryConnectionRedirectState0`` tells a callout (W50)."""

    NOT_REDIRECTED = "not redirected"
    REDIRECTED_BY_SELF = "redirected by self"
    REDIRECTED_BY_OTHER = "redirected by other"
    PREVIOUSLY_REDIRECTED_BY_SELF = "previously redirected by self"

    @property
    def may_redirect(self) -> bool:
        """Whether the callout may redirect, or must permit or block (W51)."""
        return self in (RedirectState.NOT_REDIRECTED, RedirectState.REDIRECTED_BY_OTHER)


class RedirectRecord(NamedTuple):
    """One redirection of a connection: by which redirect handle, with which context."""

    handle: int
    context: bytes


def redirect_state(handle: int, records: Sequence[RedirectRecord]) -> RedirectState:
    """What the owner of ``handle`` sees; handles are compared, not providers (W50, W52)."""
    if not records:
        return RedirectState.NOT_REDIRECTED
    if records[-1].handle == handle:
        return RedirectState.REDIRECTED_BY_SELF
    if any(record.handle == handle for record in records):
        return RedirectState.PREVIOUSLY_REDIRECTED_BY_SELF
    return RedirectState.REDIRECTED_BY_OTHER


def encode_records(flow_id: int, records: Sequence[RedirectRecord], size: int = 0) -> bytes:
    """Return the blob that the active engine's kernel would hand out.

    ``size`` is its least length in bytes; the rest is padding.
    """
    parts = [_HEAD.pack(flow_id, len(records))]
    for record in records:
        parts += _RECORD.pack(record.handle, len(record.context)), record.context
    payload = b"".join(parts)
    return _wfpioctl.engine_make_records(payload.ljust(size - MARK_SIZE, b"\0"))


def decode_records(blob: bytes) -> tuple[int, list[RedirectRecord]]:
    """Return (flow id, records) of a blob whose mark the data plane has checked; b"" is (0, [])."""
    if not blob:
        return 0, []
    flow_id, count = _HEAD.unpack_from(blob, MARK_SIZE)
    offset = MARK_SIZE + _HEAD.size
    records = []
    for _ in range(count):
        handle, size = _RECORD.unpack_from(blob, offset)
        offset += _RECORD.size
        records.append(RedirectRecord(handle, blob[offset : offset + size]))
        offset += size
    return flow_id, records
