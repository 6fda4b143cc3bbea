"""safetensors files whose header is wrong."""

import pathlib
import struct

import pytest
from weight_files import refusal


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',  # overlap
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',  # hole
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',  # bytes left over
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',  # beyond the end
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}}',  # not its shape
        '{"a":{"dtype":"F33","shape":[3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F8_E8M0","shape":[12],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
        '"a":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]}}',  # twice
        '{"a":' * 100_000,
        "{}",
        "{",
    ],
    ids=lambda header: header[:90],
)
def test_a_wrong_safetensors_header(header: str, tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    content = struct.pack("<Q", len(header)) + header.encode()
    refusal(path, content + bytes(12))


def test_a_header_longer_than_the_file(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    for length in (1000, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1):
        refusal(path, struct.pack("<Q", length) + b'{"a":')
