"""Checkpoints that are not whole, or contradict themselves, are refused in one line before anything is encoded."""

import json
import os
import re
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2CLS

from varve.config.job import Job
from varve.config.model import Model
from varve.driver.embed import embed
from varve.encoder.checkpoint.consistency import ACTIVATIONS
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.checkpoint.local_folder import check_local_folder
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.encoder import Encoder
from varve.errors import JobError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copied(tiny, tmp_path):
    """(architecture) → a copy of its tiny checkpoint, to be damaged."""
    return lambda architecture: Path(shutil.copytree(tiny(architecture), tmp_path / "model"))


def configure(folder: Path, **values) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def rewrite(folder: Path, change) -> Path:
    """Replace the weights by `change(weights)`."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder: Path) -> Path:
    """Split the weights into two files with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    files = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def refusal(folder: Path, *, before_ray: bool) -> str:
    """The message of the check before Ray starts, and of the inspection; one line each."""
    with pytest.raises(JobError) as error:
        inspect_checkpoint(str(folder))
    if before_ray:
        with pytest.raises(JobError) as early:
            check_local_folder(Model(name=str(folder)))
        assert str(early.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whole_checkpoints_pass(copied, minilm):
    folder = copied("bert")
    for name in (minilm, str(folder), "someone/model", "x" * 5000):
        check_local_folder(Model(name=name))
    whole = inspect_checkpoint(str(folder))
    check_local_folder(Model(name=str(shard(folder))))
    assert inspect_checkpoint(str(folder)).shape == whole.shape


def test_encoder_in_a_subfolder_of_the_declaration_is_checked_there(declared, tmp_path):
    folder = Path(shutil.copytree(declared("Router with two bodies"), tmp_path / "router"))
    for role in ("query", "document"):
        check_local_folder(Model(name=str(folder), role=role), reads_declaration=True)
    for config in folder.glob("document*/config.json"):
        if (config.parent / "model.safetensors").exists():
            config.write_text("{")
    check_local_folder(Model(name=str(folder), role="query"))
    with pytest.raises(JobError, match="document"):
        check_local_folder(Model(name=str(folder), role="document"))


def test_weights_of_the_hub_cache_are_links_and_pass(copied):
    folder = shard(copied("bert"))
    for file in folder.glob("*.safetensors"):
        blob = file.rename(folder.parent / file.stem)
        file.symlink_to(os.path.relpath(blob, folder))
    check_local_folder(Model(name=str(folder)))
    assert inspect_checkpoint(str(folder)).shape.num_layers == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_size": 64}, "hidden_size 64, but the weight"),
        ({"vocab_size": 1000}, "vocab_size 1000, but the weight"),
        ({"vocab_size": 10**15}, "vocab_size"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings 1000000000000, but the weight"),
        ({"intermediate_size": -1}, "intermediate_size -1, but the weight"),
        ({"num_hidden_layers": 100_000_000}, r"num_hidden_layers in config\.json is 1e\+08: expected 1,000 or less"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12, but the weights have 3 layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0, but the weights have 3 layers"),
        ({"num_attention_heads": 0}, "num_attention_heads 0, which does not divide the hidden size 32"),
        ({"num_attention_heads": 5}, "num_attention_heads 5, which does not divide"),
        ({"hidden_act": "rm -rf"}, "hidden_act 'rm -rf', which transformers does not know"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"text_config": {"n_layers": 10**9}}, r"text_config\.n_layers"),
    ],
)
def test_configuration_that_does_not_fit_the_weights_is_refused_before_ray_starts(values, expected, copied):
    folder = configure(copied("bert"), **values)
    assert re.search(expected, refusal(folder, before_ray=True))


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("distilbert", {"dim": 64}),
        ("distilbert", {"n_heads": 3}),
        ("modernbert", {"hidden_activation": "none"}),
        ("albert", {"embedding_size": 32}),
        ("electra", {"num_hidden_layers": 4}),
        ("roberta", {"intermediate_size": 32}),
    ],
)
def test_each_common_architecture_is_compared_by_its_own_keys(architecture, values, copied):
    assert next(iter(values)) in refusal(configure(copied(architecture), **values), before_ray=True)


def test_activations_of_transformers_are_known():
    assert set(ACT2CLS) <= ACTIVATIONS  # the oldest supported transformers has fewer


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("bert", {"num_hidden_layers": "6"}),
        ("bert", {"hidden_size": None}),
        ("bert", {"pad_token_id": "x"}),
        ("modernbert", {"global_attn_every_n_layers": 0, "layer_types": None}),
        ("gpt2", {"n_head": 0}),
        ("gpt2", {"n_embd": 64}),
        ("qwen2", {"hidden_act": "rm -rf"}),
        ("deberta-v2", {"num_attention_heads": 5}),
        ("mpnet", {"hidden_size": 10**18}),
    ],
)
def test_wrong_values_of_any_architecture_are_refused_without_a_traceback(architecture, values, copied):
    refusal(configure(copied(architecture), **values), before_ray=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not JSON"),
        (b"\xff\x00", "is not JSON"),
        (b"[1]", "holds a list, not a mapping"),
        (b"[" * 200_000, "is not JSON: it is nested too deeply"),
        (b" " * (17 * 2**20), "is larger than 16 MiB"),
    ],
)
def test_configuration_that_is_not_a_json_mapping_is_refused(content, expected, copied):
    folder = copied("bert")
    (folder / "config.json").write_bytes(content)
    assert expected in refusal(folder, before_ray=True)


def test_folders_and_pipes_in_place_of_files_are_refused(copied):
    folder = copied("bert")
    for name in ("tokenizer_config.json", "config.json", "model.safetensors"):
        (folder / name).rename(folder / "moved")
        (folder / name).mkdir()
        if name != "tokenizer_config.json":  # a tokenizer may have none
            assert "is not a file" in (message := refusal(folder, before_ray=True)) or "no safetensors" in message
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        if name != "tokenizer_config.json":
            refusal(folder, before_ray=True)
        (folder / name).unlink()
        (folder / "moved").rename(folder / name)


def test_checkpoint_without_a_configuration_is_refused(copied):
    folder = copied("bert")
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder, before_ray=True)


def test_missing_shard_is_named(copied):
    folder = shard(copied("bert"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder, before_ray=True)


def test_run_of_an_incomplete_checkpoint_ends_before_ray_is_joined(copied, tmp_path, monkeypatch):
    folder = shard(copied("bert"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # not reachable
    content = {
        "source": {"dataset": str(tmp_path), "text": "text"},
        "model": {"name": str(folder)},
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(JobError, match=r"model-00002-of-00002\.safetensors is missing"):
        embed(Job.parse(content))


def test_weight_that_a_shard_lacks_is_named(copied):
    folder = shard(copied("bert"))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["one.more"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "lacks the weight 'one.more'" in refusal(folder, before_ray=True)


@pytest.mark.parametrize("place", ["index", "config"])
@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "/tmp/outside.safetensors", "a/../../outside.safetensors", ".."]
)
def test_weights_outside_of_the_folder_are_refused(file, place, copied):
    folder = copied("bert")
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    if place == "config":
        configure(folder, transformers_weights=file)
    else:
        names = dict.fromkeys(load_file(folder / "model.safetensors"), file)
        (folder / "model.safetensors").rename(folder / "dummy.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert f"names the weights {file!r}: expected the name of a file in the same folder" in refusal(
        folder, before_ray=True
    )


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": 3}}', "{", '{"weight_map": {}}'])
def test_malformed_index_is_refused(content, copied):
    folder = shard(copied("bert"))
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder, before_ray=True)


@pytest.mark.parametrize(
    "header",
    [
        (2**62, b"{}"),
        (10, b'{"a":{"dt'),
        (2, b"[]"),
        (2, b"{}"),
        (100_000, b"[" * 100_000),
        (None, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        (None, {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}),
        (None, {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 0]}}),
    ],
)
def test_malformed_headers_of_weights_are_refused(header, copied):
    folder = copied("bert")
    length, content = header
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(body) if length is None else length) + body)
    assert "is not a complete safetensors file" in refusal(folder, before_ray=True)


def test_adapter_is_refused(copied):
    folder = copied("bert")
    (folder / "adapter_config.json").write_text("{}")
    assert "adapters are not loaded" in refusal(folder, before_ray=True)


def test_huge_tokenizer_file_is_refused(copied):
    folder = copied("bert")
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(2**30)  # sparse
    assert "tokenizer.json has 1,073,741,824 bytes" in refusal(folder, before_ray=False)


def test_deeply_nested_tokenizer_is_refused(copied):
    folder = copied("bert")
    (folder / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(JobError, match="has no fast tokenizer"):
        load_tokenizer(inspect_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": "long"}),
        ("special_tokens_map.json", {"unk_token": ["[UNK]"], "cls_token": {"a": 1}}),
    ],
)
def test_settings_of_a_tokenizer_of_a_wrong_type_are_refused(name, content, copied):
    folder = copied("bert")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(JobError, match="has no fast tokenizer"):
        load_tokenizer(inspect_checkpoint(str(folder)))


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])  # packed and dense
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_refused_and_named(architecture, value, copied):
    def spoil(weights):
        weights["encoder.layer.1.output.dense.weight"][0, 0] = value
        return weights

    folder = rewrite(copied(architecture), spoil)
    with pytest.raises(JobError, match=r"weight encoder\.layer\.1\.output\.dense\.weight has 1 of 2,048 numbers"):
        Encoder(str(folder), {"m": "mean"}, device="cpu")


def test_large_weights_whose_sum_overflows_are_accepted(copied):
    def enlarge(weights):
        weights["embeddings.word_embeddings.weight"][5] = 3e37  # a token that the parity check does not draw
        return weights

    Encoder(str(rewrite(copied("bert"), enlarge)), {"m": "mean"}, device="cpu")


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_outputs_that_are_not_finite_are_refused_although_all_weights_are(architecture, copied):
    def enlarge(weights):
        weights["encoder.layer.1.intermediate.dense.weight"][:] = 3e38
        return weights

    folder = rewrite(copied(architecture), enlarge)
    with pytest.raises(JobError, match="gives NaN or infinity from layer 2 on"):
        Encoder(str(folder), {"m": "mean"}, device="cpu")


def test_shape_that_only_loading_compares_is_refused(copied):
    """The inspection compares the shapes that differ between models, not all of them."""

    def cut(weights):
        weights["encoder.layer.0.output.LayerNorm.bias"] = torch.zeros(31)
        return weights

    folder = rewrite(copied("bert"), cut)
    inspect_checkpoint(str(folder))
    with pytest.raises(JobError, match=r"encoder\.layer\.0\.output\.LayerNorm\.bias has the shape \[31\].* \[32\]"):
        Encoder(str(folder), {"m": "mean"}, device="cpu")


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 100_000_000]),
    st.floats(),
    st.text(max_size=10),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "distilbert", "gpt2", "mpnet"])
def test_any_value_of_a_configuration_is_accepted_or_refused_within_seconds(architecture, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny(architecture), tmp_path / "model"))
    original = json.loads((folder / "config.json").read_text())

    @settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.dictionaries(st.sampled_from(sorted(original)), ODD, min_size=1, max_size=3))
    def inspect(values):
        (folder / "config.json").write_text(json.dumps(original | values))
        began = time.monotonic()
        with suppress(JobError):
            assert 1 <= inspect_checkpoint(str(folder)).shape.num_layers <= 1000
        assert time.monotonic() - began < 20

    inspect()
