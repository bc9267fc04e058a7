"""Avro files of Iceberg: whole ones give the values of pyiceberg's decoder, damaged ones are refused."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.avro import file as avro_file
from pyiceberg.avro.decoder import StreamingBinaryDecoder, new_decoder
from pyiceberg.avro.encoder import BinaryEncoder

from varve.lake.iceberg.avro_decoder import BoundedDecoder, bounded_decoding

VALUES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40), max_size=30)


def encode(values: list[int | bytes]) -> bytes:
    content = BytesIO()
    encoder = BinaryEncoder(content)
    for value in values:
        (encoder.write_int if isinstance(value, int) else encoder.write_bytes)(value)
    return content.getvalue()


def decode(decoder, values: list[int | bytes]) -> list[int | bytes]:
    return [decoder.read_int() if isinstance(value, int) else decoder.read_bytes() for value in values]


@given(values=VALUES)
def test_values_are_those_of_the_decoder_of_pyiceberg(values):
    content = encode(values)
    assert decode(BoundedDecoder(content), values) == decode(StreamingBinaryDecoder(content), values) == values


@given(values=VALUES.filter(bool), data=st.data())
def test_values_of_a_file_that_is_cut_short_are_refused(values, data):
    content = encode(values)
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(EOFError, match=f" of {cut}$"):
        decode(BoundedDecoder(content[:cut]), values)


@pytest.mark.parametrize("length", [-1, 2**40, 2**62])
@pytest.mark.parametrize("read", [BoundedDecoder.read_bytes, BoundedDecoder.skip_bytes, BoundedDecoder.read_utf8])
def test_length_beyond_the_file_is_refused(length, read):
    decoder = BoundedDecoder(encode([length]) + b"some bytes")
    if length < 0 and read is not BoundedDecoder.skip_bytes:
        assert not read(decoder)  # as pyiceberg does
        return
    with pytest.raises(EOFError):
        read(decoder)


def test_endless_integer_is_refused():
    with pytest.raises(EOFError):
        BoundedDecoder(b"\xff" * 10**6).read_int()


def test_pyiceberg_has_its_own_decoder_again_when_the_last_thread_has_ended():
    def decode_here(_: int) -> bool:
        with bounded_decoding():
            return avro_file.new_decoder is BoundedDecoder

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(decode_here, range(500)))
    assert avro_file.new_decoder is new_decoder
