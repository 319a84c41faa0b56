"""Blocks of records with checksums, one after the other in a file: what is damaged or torn is left out, and said."""

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

logger = logging.getLogger(__name__)

KEY_BYTES = 16

Record = tuple[bytes, bytes]
"""A key of KEY_BYTES, and a row: any bytes without a newline."""

HEADER, PLAIN, PACKED = b"h", b"n", b"p"
"""What a block is: of what the file is, records as they are, records compressed together."""

# A block: this mark; CRC-32 of all that follows; kind; number of records; bytes of the content. Then the keys, which
# nothing compresses, and the content: the rows, each with a newline behind it.
MARK = b"\xf7SJ"
_HEAD = struct.Struct("<3sI")
_CHECKED = struct.Struct("<cII")
_HEAD_BYTES = _HEAD.size + _CHECKED.size
# No block is larger, compressed or not: a length that is damaged or forged asks for no more memory.
_MAX_BYTES = 1 << 28

# A flipped bit takes a block with it; a larger one compresses better (docs/benchmarks.md).
_PACKED_BYTES = 1 << 18
_LEVEL = 3
_SCAN_BYTES = 1 << 20


class Block(NamedTuple):
    """A whole block of a file, and where it stands there."""

    start: int
    end: int
    kind: bytes
    keys: bytes
    content: bytes

    def rows(self) -> list[bytes]:
        """The rows of its records, one for each key; none where somebody forged the block."""
        content = self.content
        if self.kind == PACKED:
            with contextlib.suppress(zstandard.ZstdError):
                is_small = zstandard.frame_content_size(content) <= _MAX_BYTES
                content = zstandard.ZstdDecompressor().decompress(content) if is_small else b""
        rows = content.split(b"\n")[:-1]
        return rows if len(rows) * KEY_BYTES == len(self.keys) else []

    def records(self) -> Iterator[Record]:
        """Keys and rows."""
        for number, row in enumerate(self.rows()):
            yield self.keys[KEY_BYTES * number : KEY_BYTES * (number + 1)], row


def to_block(kind: bytes, content: bytes, keys: bytes = b"") -> bytes:
    """A block as it stands in a file."""
    checked = _CHECKED.pack(kind, len(keys) // KEY_BYTES, len(content)) + keys + content
    return _HEAD.pack(MARK, zlib.crc32(checked)) + checked


class Batch(NamedTuple):
    """Records that stay together: their keys, and their rows each with a newline behind it."""

    keys: bytes
    content: bytes

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Batch":
        return cls(b"".join([key for key, _ in records]), b"\n".join([*[row for _, row in records], b""]))

    def to_plain(self) -> bytes:
        """It as one block."""
        return to_block(PLAIN, self.content, self.keys)


def packed(batches: Iterable[Batch]) -> Iterator[bytes]:
    """Records as compressed blocks."""
    compress = zstandard.ZstdCompressor(level=_LEVEL).compress
    gathered: list[Batch] = []
    size = 0
    for batch in batches:
        gathered.append(batch)
        size += len(batch.content)
        if size >= _PACKED_BYTES:
            yield _packed(gathered, compress)
            gathered, size = [], 0
    if gathered:
        yield _packed(gathered, compress)


def _packed(batches: Sequence[Batch], compress: Callable[[bytes], bytes]) -> bytes:
    content = compress(b"".join([batch.content for batch in batches]))
    return to_block(PACKED, content, b"".join([batch.keys for batch in batches]))


def read_block(file: IO[bytes], start: int) -> Block | None:
    """The block that begins there; None where none does, or it is not whole."""
    file.seek(start)
    head = file.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(MARK):
        return None
    kind, number, size = _CHECKED.unpack_from(head, _HEAD.size)
    if KEY_BYTES * number + size > _MAX_BYTES:
        return None
    rest = file.read(KEY_BYTES * number + size)
    if zlib.crc32(rest, zlib.crc32(head[_HEAD.size :])) != _HEAD.unpack_from(head)[1]:
        return None
    keys = rest[: KEY_BYTES * number]
    return Block(start, start + _HEAD_BYTES + len(rest), kind, keys, rest[len(keys) :])


def _next_start(file: IO[bytes], start: int) -> int | None:
    """Where the next whole block begins; None where there is none."""
    while True:
        file.seek(start)
        window = file.read(_SCAN_BYTES)
        if len(window) < len(MARK):
            return None
        place = window.find(MARK)
        if place < 0:
            start += len(window) - len(MARK) + 1
        elif read_block(file, start + place) is not None:
            return start + place
        else:
            start += place + 1


def read_blocks(path: Path, *, say: bool = True) -> Iterator[Block]:
    """The whole blocks of a file. What is left out between and after them is logged, unless `say` is off."""
    with path.open("rb") as file:
        start, size = 0, os.fstat(file.fileno()).st_size
        while start < size:
            block = read_block(file, start)
            if block is not None:
                yield block
                start = block.end
                continue
            after = _next_start(file, start + 1)
            after = size if after is None else after
            if say:
                logger.warning(
                    "%s is torn or damaged at byte %d: %d bytes are left out; the calls that they recorded are made "
                    "again",
                    *(path, start, after - start),
                )
            start = after
