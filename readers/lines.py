"""Files of lines, plain or gzip, as blocks of whole lines: the ground under the JSON and the delimited readers."""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from readers import InputError

BLOCK = 4 << 20  # bytes of text handled at once: vectorised parsing pays, and a few blocks still fit into the cache and memory
LONGEST_LINE = 64 << 20  # a "line" longer than this is no line: a JSON array or a binary file
Block = tuple[int, bytes]  # (line number of its first line, whole lines that end in a newline)


def read_blocks(path: Path) -> Iterator[Block]:
    """Blocks of whole lines, gunzipped where the magic bytes say gzip. InputError for a missing or damaged file."""
    line, held, size = 1, [], 0
    try:
        for chunk in _chunks(path):
            held.append(chunk)
            size += len(chunk)
            if size < BLOCK:
                continue
            text = b"".join(held)
            cut = text.rfind(b"\n") + 1
            after = line + text.count(b"\n")
            if size - cut > LONGEST_LINE:
                raise InputError(f"{path}: line {after} is longer than {LONGEST_LINE >> 20} MB: this is not a file of lines")
            if cut:
                yield line, text[:cut]
            line, held, size = after, [text[cut:]], size - cut
    except (EOFError, zlib.error) as error:
        after = line - 1 + sum(chunk.count(b"\n") for chunk in held)
        what = "ends early" if isinstance(error, EOFError) else "is damaged"
        raise InputError(f"{path}: the gzip stream {what} after line {after:,}; the file is incomplete: fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if text := b"".join(held):
        yield line, text if text.endswith(b"\n") else text + b"\n"


def _chunks(path: Path) -> Iterator[bytes]:
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar,
    ):
        pieces = iter(lambda: file.read(1 << 20), b"")
        first = next(pieces, b"")
        pieces = itertools.chain([first], pieces)
        for number, chunk in enumerate(_inflate(pieces) if first.startswith(b"\x1f\x8b") else pieces):
            bar.update(file.tell() - bar.n)
            yield chunk if number else chunk.removeprefix(b"\xef\xbb\xbf")  # byte order mark


def _inflate(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Gunzip, several members and zero padding included; at most BLOCK bytes at a time. EOFError where it is cut off."""
    member = None
    for data in pieces:
        while data:
            if member is None:
                data = data.lstrip(b"\0")
                member = zlib.decompressobj(wbits=31) if data else None
                continue
            yield member.decompress(data, BLOCK)
            data = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member is not None:
        raise EOFError
