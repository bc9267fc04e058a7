"""Tokens per row, and the sizes of blocks and parts that follow from them."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pytest

from tests.models import RAGGED
from tests.outputs import column
from varve.config.feature import Feature
from varve.config.model import Chunks, Model, Windows
from varve.encoder.checkpoint.defaults import default_block_rows, default_tokens_per_pack, make_tokenizer
from varve.encoder.checkpoint.head import Head, Splade
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.feature_columns import plan_features
from varve.encoder.feature_plan import FeaturePlan
from varve.planning.part_sizing import (
    LARGEST_PART_BYTES,
    PART_BYTES,
    chunks_per_row,
    part_bytes,
    row_bytes,
    rows_per_part,
    tokens_per_row,
)

WIDTHS = {"minilm": 384, "base": 768, "large": 1024, "xxl": 2560}
MEAN = {"mean": Feature(pool="mean")}


@pytest.fixture
def checkpoint(tiny):
    return inspect_checkpoint(tiny("bert"))


@pytest.fixture
def widths(tiny, checkpoint):
    """Name → checkpoint of a model with this hidden size."""
    return {
        name: replace(checkpoint, shape=replace(checkpoint.shape, hidden_size=width)) for name, width in WIDTHS.items()
    }


def tokenizer_of(checkpoint, model, features=MEAN):
    return make_tokenizer(model, checkpoint, plan_features(features, checkpoint.shape, dtype="float32"))


@pytest.mark.parametrize(
    ("device", "width", "tokens", "rows"),
    [
        ("cpu", "minilm", 20, 1024),
        ("cpu", "minilm", 112, 1024),
        ("cpu", "minilm", 512, 256),
        ("cpu", "base", 112, 256),
        ("cpu", "large", 512, 32),
        ("cpu", "xxl", 512, 32),
        ("cuda", "minilm", 512, 8192),
        ("cuda", "base", 20, 8192),
        ("cuda", "base", 512, 2048),
        ("cuda", "large", 512, 1024),
    ],
)
def test_blocks_of_long_texts_or_large_models_have_fewer_rows(widths, device, width, tokens, rows):
    pack_tokens = default_tokens_per_pack(device, widths[width])
    assert default_block_rows(device, widths[width], pack_tokens, tokens) == rows


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tokens", [0, 0.5, 1, 7.5, 100, 8192, 1e9])
def test_block_is_never_empty_and_holds_enough_packs(widths, device, tokens):
    for checkpoint in widths.values():
        pack_tokens = default_tokens_per_pack(device, checkpoint)
        rows, most = (default_block_rows(device, checkpoint, pack_tokens, count) for count in (tokens, 1))
        assert rows * tokens >= 8 * pack_tokens or rows == most
        assert 1 <= rows <= most


def test_tokens_of_a_row_are_counted_after_truncation(checkpoint):
    texts = [*RAGGED, "word " * 500]
    tokenizer = tokenizer_of(checkpoint, Model(name="tiny", max_tokens=32))
    tokens = tokens_per_row(pa.table({"text": texts}), ["text"], tokenizer)
    assert tokens == tokenizer(texts).num_tokens.mean()


def test_tokens_of_pairs_count_both_texts(checkpoint):
    tokenizer = tokenizer_of(checkpoint, Model(name="tiny", max_tokens=64))
    sample = pa.table({"a": ["one two", None, "three"], "b": ["four five six", "left out", "seven"]})
    assert tokens_per_row(sample, ["a", "b"], tokenizer) == (2 + 3 + 3 + 1 + 1 + 3) / 2


def test_tokens_of_windows_are_extrapolated_to_the_whole_text(checkpoint):
    book = "word " * 100_000
    model = Model(name="tiny", long_text=Windows(window=32, stride=8))
    tokenizer = tokenizer_of(checkpoint, model)
    tokens = tokens_per_row(pa.table({"text": [book, "short"]}), ["text"], tokenizer)
    assert tokens == pytest.approx(tokenizer([book, "short"]).num_tokens.mean(), rel=0.05)


@pytest.mark.parametrize("long_text", ["truncate", Windows(window=32, stride=8)])
def test_text_on_which_the_tokenizer_fails_is_skipped(checkpoint, long_text, tmp_path):
    """Some checkpoints have a WordPiece model without an unknown token, which raises for unknown characters."""
    folder = shutil.copytree(checkpoint.folder, tmp_path / "no-unknown")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["unk_token"] = "[NOT THERE]"
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = tokenizer_of(inspect_checkpoint(str(folder)), Model(name="tiny", long_text=long_text))
    with pytest.raises(Exception, match="WordPiece error"):
        tokenizer(["\u2603"])
    sample = pa.table({"text": ["one two", "\u2603"]})
    assert tokens_per_row(sample, ["text"], tokenizer) == tokenizer(["one two"]).num_tokens[0]
    assert tokens_per_row(sample.slice(1), ["text"], tokenizer) == 1.0


@pytest.mark.parametrize("texts", [[], [None], [""]])
def test_rows_without_a_text_have_one_or_two_tokens(checkpoint, texts):
    for long_text in ("truncate", Windows(window=32, stride=8)):
        tokenizer = tokenizer_of(checkpoint, Model(name="tiny", long_text=long_text))
        assert tokens_per_row(pa.table({"text": pa.array(texts, pa.string())}), ["text"], tokenizer) in {1.0, 2.0}


@pytest.mark.parametrize(
    ("output_bytes", "expected"), [(0, PART_BYTES), (1e12, PART_BYTES), (2e13, 2e8), (3e14, LARGEST_PART_BYTES)]
)
def test_parts_of_a_very_large_output_grow_up_to_a_limit(output_bytes, expected):
    assert part_bytes(output_bytes) == expected


@pytest.mark.parametrize("block_rows", [64, 1024, 8192])
def test_parts_are_multiples_of_blocks_if_a_block_fits(checkpoint, block_rows):
    sample = pa.table({"text": ["some words"] * 8})
    plan = plan_features(MEAN, checkpoint.shape, dtype="float32")
    rows = rows_per_part(sample, 4.0, plan, {}, 0, block_rows)
    assert rows % block_rows == 0
    heavy = rows_per_part(sample, 4.0, plan, {"image": PART_BYTES / 3}, 0, block_rows)
    assert heavy == 2
    assert rows_per_part(sample.slice(0, 0), 4.0, plan, {}, 0, block_rows) == block_rows


@pytest.mark.parametrize(
    ("form", "dtype", "expected"),
    [
        ("vector", "float32", 40),
        ("chunks", "float16", 3 * (20 + 8)),
        ("late", "int8", 100 * (10 + 4 + 4 + 8)),
        ("clusters", "binary", 100 * 2),
        ("sparse", "float32", 250 * 8),
    ],
)
def test_bytes_of_a_row_count_its_tokens_chunks_and_entries(form, dtype, expected):
    plan = FeaturePlan((column("e", 10, dtype=dtype, form=form),), 1, 1, special_tokens=False)
    assert row_bytes(plan, 100, 3) == {"e": expected}


def test_sparse_vectors_with_fewer_entries_are_smaller():
    heads = {"e": Head(kind="sparse", pooling=Splade("max"), max_active_dims=10)}
    plan = FeaturePlan((column("e", 100, form="sparse"),), 1, 1, special_tokens=False, heads=heads)
    assert row_bytes(plan, 100) == {"e": 80}


@pytest.mark.parametrize(
    ("chunk", "tokens", "expected"),
    [
        (None, 1000, 1),
        (Chunks(tokens=100), 1000, 10),
        (Chunks(tokens=100, overlap=20), 1000, 12.5),
        (Chunks(tokens=100), 10, 1),
        (Chunks(by="sentences", tokens=100), 750, 10),
    ],
)
def test_number_of_chunks_follows_from_the_tokens(chunk, tokens, expected):
    assert chunks_per_row(Model(name="tiny", long_text=Windows(window=8192, chunk=chunk)), tokens) == expected
