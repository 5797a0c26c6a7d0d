"""Short messages between a worker and one process of an environment."""

from __future__ import annotations

import socket
import struct

_HEADER = struct.Struct("<cI")
_CHUNK_BYTES = 1 << 16


class Say:
    """Kinds of messages."""

    # From the worker:
    PLACE = b"P"  # which environment this is; the memory of its counters follows
    ATTACH = b"A"  # the memory of its rows follows
    BEGIN = b"B"  # a rollout, in a predecessor's place
    RESET = b"R"  # begin the first rollout
    STEP = b"S"  # and begin a rollout where this one ends
    LAST_STEP = b"L"  # step, and leave where the rollout ends
    RESEED = b"D"
    CLOSE = b"C"
    # From the environment:
    BUILT = b"b"  # its spaces and its name
    EXTRA = b"x"  # what is to be said beside the arrays, before what follows
    DONE = b"d"  # what was asked for
    LEFT = b"l"  # the step is done, the rollout has ended, and the environment is closed
    FAILED = b"f"  # for good


class LineClosed(EOFError):
    """The other side is gone."""


class Line:
    """Frames of a kind and some bytes over a connected socket. Raises LineClosed where the other side is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._read = bytearray()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        try:
            self.socket.sendall(_HEADER.pack(kind, len(payload)) + payload)
        except OSError as error:
            raise LineClosed(str(error)) from error

    def send_file(self, fd: int) -> None:
        try:
            socket.send_fds(self.socket, [b"."], [fd])
        except OSError as error:
            raise LineClosed(str(error)) from error

    def receive_file(self) -> int:
        """A descriptor of one's own. To be called where the next that comes is one, and nothing was read beyond it."""
        assert not self._read
        _, fds, _, _ = socket.recv_fds(self.socket, 1, 1)
        if not fds:
            raise LineClosed("closed instead of a descriptor")
        return fds[0]

    def receive(self) -> tuple[bytes, bytes]:
        """Wait for one frame, and read no byte beyond it."""
        kind, size = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(size) if size else b""

    def poll(self) -> tuple[bytes, bytes] | None:
        """One frame if all of it has come. Never waits."""
        try:
            chunk = self.socket.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._frame()
        except OSError as error:
            raise LineClosed(str(error)) from error
        self._read += chunk
        frame = self._frame()
        if frame is None and not chunk:
            raise LineClosed("closed")
        return frame

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            chunk = self.socket.recv(size - len(found))
            if not chunk:
                raise LineClosed("closed")
            found += chunk
        return found

    def _frame(self) -> tuple[bytes, bytes] | None:
        if len(self._read) < _HEADER.size:
            return None
        kind, size = _HEADER.unpack_from(self._read)
        end = _HEADER.size + size
        if len(self._read) < end:
            return None
        payload = bytes(self._read[_HEADER.size : end])
        del self._read[:end]
        return kind, payload
