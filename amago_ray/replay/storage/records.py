"""The binary format of stored trajectories: one record per message that a shard acknowledged.

A segment is a header followed by records, laid end to end:

    segment  =  PREFIX | JSON header                        the columns' types, and what was known when it began
    record   =  HEAD | facts of M trajectories | JSON extras | column | column | ...

Every column of a record holds the rows of its M trajectories end to end, so that a slice of one trajectory is one
contiguous read per column. A compressed column is a run of lz4 blocks of `BLOCK_ROWS` rows each. A *commit* and an
*eviction* are records without trajectories. All numbers are little-endian. HEAD carries two CRC-32 checksums: one over
itself and the facts, which is checked whenever a log is opened, and one over the columns.

Shape letters: M trajectories of one record, R rows of them all.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from amago_ray.replay.storage.trajectory_pack import PackedTrajectories

MAGIC = 0x52474D41  # "AMGR"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<IIII")  # magic, format version, bytes and CRC-32 of the JSON header
HEAD = struct.Struct("<IIIIQQQdI")  # magic, kind, facts bytes, extras bytes, columns bytes, M, R, time, columns' CRC
HEAD_BYTES = HEAD.size + 4  # and the CRC of HEAD, facts and extras
DATA, COMMIT, EVICTION = 1, 2, 3
BLOCK_ROWS = 16

FACTS = np.dtype(
    [
        ("worker", "<i8"),
        ("incarnation", "<i8"),
        ("sequence", "<i8"),
        ("num_rows", "<i8"),
        ("first_time_idx", "<i8"),
        ("weight_version", "<i8"),
        ("truncated", "<i4"),
        ("env", "<i4"),
        ("total_reward", "<f8"),
    ]
)


class Corrupt(Exception):
    """Stored bytes are not what was written."""


@dataclass(frozen=True)
class Column:
    """One column of all records of a segment. shape: of one row. codec: "raw" or "lz4"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str = "raw"

    @cached_property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Schema:
    """The columns of a segment's records."""

    columns: tuple[Column, ...]

    @staticmethod
    def of(columns: Mapping[str, np.ndarray], compressed: tuple[str, ...] = ()) -> Schema:
        """The schema of a message's columns; those named in `compressed` are stored as lz4 blocks."""
        return Schema(
            tuple(
                Column(name, x.dtype.str.lstrip("<|="), x.shape[1:], "lz4" if name in compressed else "raw")
                for name, x in columns.items()
            )
        )

    def to_json(self) -> list[list[Any]]:
        return [[c.name, c.dtype, list(c.shape), c.codec] for c in self.columns]

    @staticmethod
    def from_json(columns: list[list[Any]]) -> Schema:
        return Schema(tuple(Column(name, dtype, tuple(shape), codec) for name, dtype, shape, codec in columns))


@dataclass(slots=True)
class Record:
    """Where a record lies, and what is needed to read from it.

    offset: of its head in the segment. columns_at: of its first column. block_ends: column -> end of each of its lz4
    blocks, from the column's start. verified: the columns' checksum was compared, or they were written by this process.
    """

    segment: int
    offset: int
    columns_at: int
    columns_bytes: int
    columns_crc: int
    num_rows: int
    time_s: float
    block_ends: dict[str, np.ndarray] = field(default_factory=dict)
    verified: bool = True

    @property
    def end(self) -> int:
        return self.columns_at + self.columns_bytes

    def column_bytes(self, column: Column) -> int:
        if column.codec == "raw":
            return self.num_rows * column.row_bytes
        return int(self.block_ends[column.name][-1])


@dataclass(frozen=True)
class Entry:
    """The facts of one record as they are read back. kind: DATA, COMMIT or EVICTION. facts: (M,) of dtype FACTS."""

    record: Record
    kind: int
    facts: np.ndarray
    extras: dict[str, Any]


def segment_header(schema: Schema, known: Mapping[str, Any]) -> bytes:
    """The first bytes of a segment. known: what the store must remember beyond the records that follow."""
    text = json.dumps({"columns": schema.to_json(), "known": known}).encode()
    return PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), zlib.crc32(text)) + text


def parse_segment_header(prefix: bytes, text: bytes) -> tuple[Schema, dict[str, Any]]:
    """The inverse of `segment_header`. Raises Corrupt."""
    header = parse_prefix(prefix)
    if len(text) != header[0] or zlib.crc32(text) != header[1]:
        raise Corrupt("its header does not match the header's checksum")
    loaded = json.loads(text)
    return Schema.from_json(loaded["columns"]), loaded["known"]


def parse_prefix(prefix: bytes) -> tuple[int, int]:
    """(bytes, CRC-32) of the JSON header that follows. Raises Corrupt."""
    if len(prefix) < PREFIX.size:
        raise Corrupt("it ends within its header")
    magic, version, size, crc = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise Corrupt("it does not begin as a replay segment does")
    if version != FORMAT_VERSION:
        raise Corrupt(f"it has format version {version}, and this is version {FORMAT_VERSION}")
    return size, crc


def facts_of(packed: PackedTrajectories, env_numbers: Mapping[str, int]) -> np.ndarray:
    """(M,) facts of a message's trajectories. total_reward: of each one's own transitions."""
    facts = np.zeros(len(packed), dtype=FACTS)
    facts["worker"], facts["incarnation"], facts["sequence"] = packed.ids.T
    facts["num_rows"], facts["first_time_idx"] = packed.num_rows, packed.first_time_idx
    facts["weight_version"], facts["truncated"] = packed.weight_version, packed.truncated
    facts["env"] = [env_numbers[name] for name in packed.env_names]
    first = np.cumsum(packed.num_rows) - packed.num_rows
    reward = packed.columns["reward"].astype(np.float64)
    facts["total_reward"] = np.add.reduceat(reward, first) - reward[first]
    return facts


def encode(packed: PackedTrajectories, schema: Schema, time_s: float) -> tuple[list[Any], Record, np.ndarray]:
    """Buffers to be written end to end, the record that they make at offset 0 of segment 0, and its facts."""
    env_names = sorted(set(packed.env_names))
    facts = facts_of(packed, {name: i for i, name in enumerate(env_names)})
    buffers: list[Any] = []
    block_ends: dict[str, np.ndarray] = {}
    for column in schema.columns:
        values = np.ascontiguousarray(packed.columns[column.name])
        if column.codec == "raw":
            buffers.append(values.reshape(-1).view(np.uint8))
        else:
            blocks = _compress(values)
            block_ends[column.name] = np.cumsum([len(block) for block in blocks], dtype=np.int64)
            buffers.extend(blocks)
    crc = 0
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    size = sum(len(buffer) for buffer in buffers)
    extras = {"envs": env_names, "blocks": {name: ends.tolist() for name, ends in block_ends.items()}}
    head = _head(DATA, facts, extras, size, int(packed.num_rows.sum()), time_s, crc)
    record = Record(0, 0, len(head), size, crc, int(packed.num_rows.sum()), time_s, block_ends)
    return [head, *buffers], record, facts


def encode_commit(number: int, total: int, time_s: float) -> bytes:
    """A commit: all records before it are visible. total: trajectories that ever were, up to and with this commit."""
    return _head(COMMIT, np.zeros(0, dtype=FACTS), {"number": number, "total": total}, 0, 0, time_s, 0)


def encode_eviction(first: int, oldest: Sequence[int] | None, time_s: float) -> bytes:
    """An eviction: trajectories are alive from number `first` on, whatever the segments still hold of others.

    oldest: commit and identity of the first one that is alive, None where nothing is: where records are lost, numbers
    are not what they were.
    """
    return _head(EVICTION, np.zeros(0, dtype=FACTS), {"first": first, "oldest": oldest}, 0, 0, time_s, 0)


def _head(
    kind: int, facts: np.ndarray, extras: Mapping[str, Any], size: int, num_rows: int, time_s: float, crc: int
) -> bytes:
    text = json.dumps(extras, separators=(",", ":")).encode()
    head = HEAD.pack(MAGIC, kind, facts.nbytes, len(text), size, len(facts), num_rows, time_s, crc)
    body = facts.tobytes() + text
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def head_bytes(head: bytes) -> int:
    """Bytes of a record before its columns, given its first HEAD_BYTES. Raises Corrupt."""
    if len(head) < HEAD_BYTES:
        raise Corrupt("it ends within a record's head")
    magic, kind, facts_bytes, extras_bytes, *_ = HEAD.unpack_from(head)
    if magic != MAGIC or kind not in (DATA, COMMIT, EVICTION):
        raise Corrupt("a record does not begin as records do")
    return HEAD_BYTES + facts_bytes + extras_bytes


def decode(head: bytes, segment: int, offset: int) -> Entry:
    """The entry whose bytes before the columns are `head`. Raises Corrupt when its checksum does not match."""
    _, kind, facts_bytes, _, size, num_trajectories, num_rows, time_s, crc = HEAD.unpack_from(head)
    (expected,) = struct.unpack_from("<I", head, HEAD.size)
    body = head[HEAD_BYTES:]
    if zlib.crc32(body, zlib.crc32(head[: HEAD.size])) != expected:
        raise Corrupt("a record's facts do not match their checksum")
    facts = np.frombuffer(body[:facts_bytes], dtype=FACTS)
    assert len(facts) == num_trajectories
    extras = json.loads(body[facts_bytes:])
    block_ends = {name: np.array(ends, dtype=np.int64) for name, ends in extras.get("blocks", {}).items()}
    record = Record(segment, offset, offset + len(head), size, crc, num_rows, time_s, block_ends, verified=False)
    return Entry(record, kind, facts, extras)


def _compress(values: np.ndarray) -> list[bytes]:
    import lz4.block

    blocks = range(0, len(values), BLOCK_ROWS)
    return [lz4.block.compress(values[i : i + BLOCK_ROWS].reshape(-1).view(np.uint8), store_size=False) for i in blocks]


def decompress(block: bytes | memoryview, num_bytes: int) -> bytes:
    """One block of a compressed column; `num_bytes` long once it is decompressed. Raises Corrupt."""
    import lz4.block

    try:
        return lz4.block.decompress(block, uncompressed_size=num_bytes)
    except lz4.block.LZ4BlockError as error:
        raise Corrupt(f"a compressed block cannot be read ({error})") from error
