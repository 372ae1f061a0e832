"""Changes to a file's bytes that know nothing of what they mean, or only where protobuf keeps its lengths."""

from collections.abc import Callable, Mapping
from random import Random

__all__ = ["BYTE_MUTATIONS"]

# random, bytes, bytes of another file -> changed bytes
ByteMutation = Callable[[Random, bytes, bytes], bytes]

_EXTREME_VARINTS = (
    b"\x00",
    b"\x7f",
    b"\xff\xff\xff\xff\x07",  # 2^31 - 1
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # 2^63 - 1
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # -1
    b"\xff" * 11,  # longer than any varint
)


def _flip(random: Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, data: bytes, other: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.choice((1, 2, 16, 300))) + data[place:]


def _delete(random: Random, data: bytes, other: bytes) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + data[start + random.choice((1, 2, 16, 300)) :]


def _truncate(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


def _append(random: Random, data: bytes, other: bytes) -> bytes:
    """Protobuf merges a message that follows another one."""
    return data + other


def _repeat(random: Random, data: bytes, other: bytes) -> bytes:
    start = random.randrange(len(data))
    block = data[start : start + random.choice((1, 8, 64, 1000))]
    return data[:start] + block * random.choice((2, 3, 50)) + data[start + len(block) :]


def _swap_varint(random: Random, data: bytes, other: bytes) -> bytes:
    """Put another length or number where a field's tag is followed by one."""
    places = [place for place in range(1, len(data)) if data[place - 1] & 7 in (0, 2) and data[place - 1] >> 3]
    start = random.choice(places)
    end = start
    while end < len(data) - 1 and data[end] & 0x80:
        end += 1
    small = bytes([(data[start] + random.choice((-2, -1, 1, 2))) & 0x7F])
    return data[:start] + random.choice((*_EXTREME_VARINTS, small, small)) + data[end + 1 :]


def _swap_tag(random: Random, data: bytes, other: bytes) -> bytes:
    """Another wire type, groups included, or another field."""
    changed = bytearray(data)
    place = random.randrange(len(changed))
    changed[place] = random.randrange(1, 32) << 3 | random.randrange(8)
    return bytes(changed)


BYTE_MUTATIONS: Mapping[str, ByteMutation] = {
    "bits flipped": _flip,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "truncated": _truncate,
    "spliced": _splice,
    "two files merged": _append,
    "block repeated": _repeat,
    "length changed": _swap_varint,
    "tag changed": _swap_tag,
}
