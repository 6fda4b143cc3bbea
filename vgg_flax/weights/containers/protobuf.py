"""protobuf's wire format by hand: fields in place, and a bound on the work.

protobuf's own library would need the schemas compiled, and copies every number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file

VARINT, I64, LEN, I32 = 0, 1, 2, 5  # wire types


class WireError(Exception):
    """Bytes that are not protobuf's."""


class Field(NamedTuple):
    """One of a message: its number and type, and the bytes or the number in it."""

    number: int
    wire_type: int
    start: int  # of the payload, in the message
    payload: np.ndarray  # uint8; the varint's own bytes, for a varint
    value: int  # of a varint; 0 for others

    @property
    def text(self) -> str:
        """Of a string."""
        return self.payload.tobytes().decode("utf-8", "backslashreplace")


class Walk:
    """Through the messages of one file, with its errors and a bound on the work."""

    def __init__(self, file: mapped_file.MappedFile, kind: str):
        """`kind`: what the file is, for errors: "a caffemodel"."""
        self.file = file
        self._kind = kind
        self._count = 0

    def fields(self, message: np.ndarray, position: int = 0) -> Iterator[Field]:
        """Those from `position` on; raises WeightsError where there is none."""
        while position < len(message):
            self.count()
            try:
                field, position = read_field(message, position)
            except WireError as error:
                raise self.damaged(error) from error
            yield field

    def integers(self, field: Field) -> Iterator[int]:
        """The numbers of a repeated int64 or int32: one, or packed ones."""
        if field.wire_type == VARINT:
            yield signed(field.value)
        position = 0 if field.wire_type == LEN else len(field.payload)
        while position < len(field.payload):
            self.count()
            try:
                value, position = read_varint(field.payload, position)
            except WireError as error:
                raise self.damaged(error) from error
            yield signed(value)

    def count(self) -> None:
        """Counts a field, or a run of them."""
        self._count += 1
        self.file.check_parts(self._count, "fields")

    def damaged(self, error: WireError) -> WeightsError:
        """The error for the file."""
        return self.file.damaged(f"as {self._kind}, {error}")


def read_field(message: np.ndarray, position: int) -> tuple[Field, int]:
    """The field at `position`, and where the next one starts."""
    tag, start = read_varint(message, position)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number < 1 << 29:
        raise WireError(f"byte {position} starts a field numbered {number}")
    value = 0
    if wire_type == VARINT:
        value, end = read_varint(message, start)
    elif wire_type == LEN:
        size, start = read_varint(message, start)
        end = start + size
    elif wire_type in (I32, I64):
        end = start + (4 if wire_type == I32 else 8)
    else:
        raise WireError(f"byte {position} starts a field of wire type {wire_type}")
    if end > len(message):
        raise WireError(f"a field ends at byte {end} of a message of {len(message)}")
    return Field(number, wire_type, start, message[start:end], value), end


def read_varint(message: np.ndarray, position: int) -> tuple[int, int]:
    """The number at `position`, unsigned, and where what follows starts."""
    value = 0
    for i, byte in enumerate(message[position : position + 10].tolist()):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise WireError(f"byte {position} starts a number that does not end")


def signed(value: int) -> int:
    """A varint as int64, whose negative numbers are written as 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
