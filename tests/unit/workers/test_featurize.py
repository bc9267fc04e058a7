from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from varve.config.feature import Feature
from varve.config.model import Model, Windows
from varve.encoder.encoder import Encoder
from varve.encoder.model.forward import Forward
from varve.errors import RunError
from varve.output.schema import output_schema
from varve.preprocessing.text_blocks import tokenize_block, tokenize_blocks
from varve.preprocessing.tokenizer import Tokenizer
from varve.workers.featurize import featurize

DTYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


def run(encoder, table, block_rows=4, text_columns=("text",)):
    pairs = len(text_columns) > 1
    schema = output_schema(encoder.feature_plan, pa.schema([table.schema.field("id")]), pairs=pairs)
    blocks = tokenize_blocks(encoder.tokenizer, table, text_columns, block_rows)
    return featurize(encoder, table, blocks, schema=schema, shard=2, start=100, pairs=pairs)[0]


def rows_of(*texts) -> pa.Table:
    return pa.table(
        {"id": [{"n": [number]} for number in range(len(texts))], "text": pa.array(texts, pa.large_string())}
    )


def broken_text() -> pa.Array:
    """A string column with a cell that is not UTF-8, as some writers leave them in Parquet files."""
    return pa.array([b"fine", b"caf\xe9", None], pa.large_binary()).view(pa.large_string())


def test_rows_that_can_not_be_encoded_carry_their_reason_and_cost_no_other(tiny):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean"), "t": Feature(pool="tokens")}, device="cpu")
    table = run(encoder, rows_of("a text", None, "", "emoji 🙂", None))
    assert table["error"].to_pylist() == [None, "null text in text", None, None, "null text in text"]
    assert table["row"].to_pylist() == list(range(100, 105))
    assert table["id"].to_pylist() == [{"n": [number]} for number in range(5)]
    for name in ("e", "t", "num_tokens", "truncated", "input_ids", "offsets"):
        assert [value is None for value in table[name].to_pylist()] == [False, True, False, False, True], name
    alone = run(encoder, rows_of("emoji 🙂"))
    assert np.allclose(table["e"][3].as_py(), alone["e"][0].as_py(), atol=2e-5)


def test_text_that_is_not_utf8_is_an_error_row(tiny):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean")}, device="cpu")
    table = run(encoder, pa.table({"id": broken_text(), "text": broken_text()}))
    assert table["error"].to_pylist() == [None, "text is not UTF-8: byte 0xe9 at 3", "null text in text"]
    assert table["id"].to_pylist() == ["fine", "caf\ufffd", None]


def test_text_on_which_the_tokenizer_panics_is_an_error_row(minilm):
    """Windows of 8 tokens, 5 of them special, can't overlap by 3: Rust's assertion, where a text needs a second one."""
    pretrained = AutoTokenizer.from_pretrained(minilm)
    pretrained.backend_tokenizer.post_processor = TemplateProcessing(
        "[CLS] [CLS] [CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer = Tokenizer(pretrained, 8, windows=True, stride=3)
    block = tokenize_block(tokenizer, rows_of("one", None, "one two three four", "two"), ["text"])
    assert [reason and reason[:29] for reason in block.reasons] == [
        None, "null text in text", "the tokenizer failed: `stride", None
    ]  # fmt: skip
    assert block.tokens.input_ids[block.tokens.cu_seqlens[:-1] + 3].tolist() == [2028, 2048]


def test_block_of_error_rows_alone_is_written(tiny):
    features = {"e": Feature(pool="mean"), "t": Feature(pool="tokens"), "a": Feature(pool="attentions", layers=1)}
    table = run(Encoder(tiny("bert"), features, device="cpu"), rows_of(None, None))
    assert table["error"].null_count == 0
    assert table["e"].null_count == 2


def test_rows_have_the_same_vectors_whatever_the_other_blocks_hold(tiny):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean")}, device="cpu")
    texts = [f"text number {number} " * (number % 7 + 1) for number in range(12)]
    whole = run(encoder, rows_of(*texts))["e"].combine_chunks()
    second = run(encoder, rows_of(*texts[4:8]))["e"].combine_chunks()
    assert whole.slice(4, 4).equals(second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_plain_columns_of_its_type(dtype, tiny):
    features = {"e": Feature(pool="mean"), "t": Feature(pool="tokens")}
    table = run(Encoder(tiny("bert"), features, output_dtype=dtype, device="cpu"), rows_of("one", None, "two words"))
    length = 4 if dtype == "binary" else 32
    assert table.schema.field("e").type == pa.list_(DTYPES[dtype], length)
    assert table.schema.field("t").type == pa.list_(pa.list_(DTYPES[dtype], length))
    assert ("e_scale" in table.column_names) == (dtype == "int8")
    assert [len(vectors) if vectors else vectors for vectors in table["t"].to_pylist()] == [1, None, 2]


NOT_A_NUMBER = ["mean", "tokens", "logits", "attentions"]


@pytest.mark.parametrize(("pool", "dtype"), [*((pool, "float32") for pool in NOT_A_NUMBER), ("mean", "binary")])
def test_features_that_are_not_finite_are_error_rows(pool, dtype, tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    feature, name = {"e": Feature(pool=pool)}, tiny("bert", labels=2)
    folder = tmp_path / "overflowing"
    shutil.copytree(name, folder)
    weights = load_file(folder / "model.safetensors")
    encoder = Encoder(str(folder), {"e": Feature(pool="mean")}, device="cpu")
    word = encoder.tokenizer(["boom"]).input_ids[1]
    weights["bert.embeddings.word_embeddings.weight"][word] = 3e38  # its sum overflows, although it is finite
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # The comparison at load draws from the upper half of the vocabulary, where this word must not be.
    assert word < 30522 // 2
    overflowing = Encoder(str(folder), feature, output_dtype=dtype, device="cpu")
    table = run(overflowing, rows_of("fine", "boom", "fine"))
    assert table["error"].to_pylist() == [None, "the features are not finite", None]
    assert table["e"].null_count == 1
    with pytest.raises(RunError, match="text 1: the features are not finite"):
        overflowing(["fine", "boom"])


@pytest.mark.parametrize("pool", ["mean", "tokens"])
def test_features_beyond_what_float16_holds_are_error_rows(pool, tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "large"
    shutil.copytree(tiny("bert"), folder)
    weights, texts = load_file(folder / "model.safetensors"), [f"number {number}" for number in range(40)]

    def largest(bias: float) -> np.ndarray:
        weights["encoder.layer.2.output.LayerNorm.bias"][0] = bias
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        columns = Encoder(str(folder), {"e": Feature(pool=pool)}, device="cpu")(texts)["e"]
        if pool == "tokens":
            columns = np.stack([columns.values[start:stop].max(0) for start, stop in pairwise(columns.offsets)])
        return columns[:, 0]

    first = 65_520  # that rounds to infinity
    too_large = largest(2 * first - float(np.median(largest(first)))) >= first
    assert 0 < too_large.sum() < 40
    table = run(Encoder(str(folder), {"e": Feature(pool=pool)}, output_dtype="float16", device="cpu"), rows_of(*texts))
    assert table["error"].is_valid().to_pylist() == too_large.tolist()
    assert table["e"].is_null().to_pylist() == too_large.tolist()


def test_windows_are_a_list_column_with_their_characters(tiny):
    model = Model(name=tiny("bert"), long_text=Windows(window=16, stride=2, vectors="window"))
    table = run(Encoder(model, {"e": Feature(pool="mean")}, device="cpu"), rows_of("one", None, "word " * 40))
    counts = [vectors and len(vectors) for vectors in table["e"].to_pylist()]
    assert counts[0] == 1
    assert counts[1] is None
    assert counts[2] == len(table["windows"][2].as_py()) > 2


def test_pairs_with_one_null_are_error_rows(tiny):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean"), "t": Feature(pool="tokens")}, device="cpu")
    table = pa.table({"id": [1, 2, 3], "a": ["x", None, "y"], "b": ["z", "w", None]})
    result = run(encoder, table, text_columns=("a", "b"))
    assert result["error"].to_pylist() == [None, "null text in a", "null text in b"]
    assert result["sequence_ids"][0].as_py() == [0, 1]


@pytest.mark.slow
def test_a_text_that_does_not_fit_into_memory_is_an_error_row(tiny, monkeypatch):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean")}, device="cpu")
    forward = Forward.__call__

    def small_device(self, pack):
        if pack.num_tokens > 20:
            raise torch.OutOfMemoryError
        return forward(self, pack)

    monkeypatch.setattr(Forward, "__call__", small_device)
    long = "word " * 30
    table = run(encoder, rows_of("short", long, None, "short too", long))
    assert [bool(error) for error in table["error"].to_pylist()] == [False, True, True, False, True]
    assert "32 tokens" in table["error"][1].as_py()
    assert [vector is None for vector in table["e"].to_pylist()] == [False, True, True, False, True]
