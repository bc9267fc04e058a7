"""Which checkpoints are accepted, and the errors for the others."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests.models import ARCHITECTURES
from varve.config.feature import Feature
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.checkpoint.loading import load_model
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.encoder import Encoder
from varve.errors import JobError


def test_model_whose_batches_differ_from_single_texts_is_refused(tiny, monkeypatch):
    from varve.encoder.model import parity_check

    monkeypatch.setattr(parity_check, "TOLERANCE", 0.0)  # so that no model is exact enough
    with pytest.raises(JobError, match="cannot be encoded exactly"):
        Encoder(tiny("deberta-v2"), {"m": Feature(pool="mean")}, device="cpu")


@pytest.fixture
def cached(tiny, tmp_path, monkeypatch):
    """The commit of someone/model's main branch in the Hub's cache. The Hub is offline in tests."""
    from huggingface_hub import constants

    commit = "c0ffee" * 6 + "c0de"
    model = tmp_path / "models--someone--model"
    shutil.copytree(tiny("bert"), model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


def test_model_that_needs_more_than_tokens_is_refused(tiny):
    with pytest.raises(
        JobError, match=r"BrosModel cannot be run on the 3 token ids of a single text: ValueError: .* bbox"
    ):
        Encoder(tiny("bros"), {"m": Feature(pool="mean")}, device="cpu")


def test_hub_id_is_pinned_to_the_commit_whose_files_are_fetched(cached, monkeypatch):
    """Only the Hub is replaced: it returns the commit of a branch."""
    from varve.encoder.checkpoint import hub

    requests = []

    def download(name, *, revision, allow_patterns):
        requests.append((name, revision, "*.bin" in allow_patterns))
        return snapshot_download(name, revision="main", allow_patterns=allow_patterns)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert inspect_checkpoint("someone/model", "newest").commit == cached
    assert requests == [("someone/model", "newest", False)]


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_hub_id_in_the_cache_is_read_from_there_if_the_hub_is_offline(revision, cached):
    checkpoint = inspect_checkpoint("someone/model", cached if revision == "commit" else revision)
    assert checkpoint.commit == cached
    assert Path(checkpoint.folder).name == cached


@pytest.mark.parametrize(("name", "revision"), [("someone/other", None), ("someone/model", "v2")])
def test_hub_id_that_is_not_in_the_cache_is_refused_if_the_hub_is_offline(name, revision, cached):
    with pytest.raises(JobError, match=rf"model\.name: {name} .* offline mode .* revision {revision or 'main'}\."):
        inspect_checkpoint(name, revision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "endpoint", "reason"),
    [
        ("model.name", "htp://hub", "could not be reached"),
        ("source.dataset", "http://127.0.0.1:9", "ConnectError"),
    ],
)
def test_hub_that_can_not_be_reached_is_reported_in_one_message(key, endpoint, reason, tiny, tmp_path):
    """In a separate process, because the Hub's client reads its environment at import."""
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path)}
    model = "someone/thing" if key == "model.name" else tiny("bert")
    arguments = ["--dataset", "someone/thing", "--text", "text", "--model", model, "--output", str(tmp_path)]
    command = [sys.executable, "-m", "varve", "plan", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | hub)
    assert done.returncode == 2
    assert f"{key}: someone/thing" in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_empty_name_does_not_mean_the_current_folder():
    with pytest.raises(JobError, match=r'name: "" is empty'):
        Encoder("", device="cpu")


def test_checkpoint_without_safetensors_is_refused(tiny, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, Path(folder) / "pytorch_model.bin")
    with pytest.raises(JobError, match="no safetensors weights"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
@pytest.mark.parametrize("pointer", [True, False])
def test_incomplete_weights_are_refused_with_their_file_before_they_are_loaded(architecture, pointer, tiny, tmp_path):
    weights = Path(shutil.copytree(tiny(architecture), tmp_path / "incomplete"), "model.safetensors")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" if pointer else weights.read_bytes()[:-9])
    with pytest.raises(JobError, match=rf"{weights} \([\d,]+ bytes\) is not a complete safetensors file"):
        inspect_checkpoint(str(weights.parent))


def test_checkpoint_with_missing_weights_is_refused(tiny, tmp_path):
    folder = tmp_path / "incomplete"
    shutil.copytree(tiny("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="they would be random"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
def test_checkpoint_without_a_vocabulary_is_refused(architecture, tiny, tmp_path):
    """`model.save_pretrained` alone writes such a folder; transformers makes a tokenizer of special tokens from it."""
    folder = shutil.copytree(tiny(architecture), tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(JobError, match=r"has no fast tokenizer: .* none of tokenizer\.json"):
        load_tokenizer(inspect_checkpoint(str(folder)))


def test_tokenizer_that_can_not_be_read_is_refused_in_one_line(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "broken")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(JobError, match=r"has no fast tokenizer: JSONDecodeError: [^\n]*$"):
        load_tokenizer(inspect_checkpoint(str(folder)))


def test_tokenizer_of_own_code_reads_files_of_any_name(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "own")
    (folder / "tokenizer.json").rename(folder / "vocabulary.json")
    code = """
from pathlib import Path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    def __init__(self, **options):
        file = Path(options["name_or_path"], "vocabulary.json")
        super().__init__(tokenizer_object=Tokenizer.from_file(str(file)), **options)
"""
    (folder / "tokenization_own.py").write_text(code)
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(inspect_checkpoint(str(folder), trust_remote_code=True))
    assert tokenizer("some text")["input_ids"] == [101, 2070, 3793, 102]


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_does_not_run_without_permission(file, tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "hostile")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    content = json.loads((folder / file).read_text())
    names = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": [None, "own.Own"]}
    (folder / file).write_text(json.dumps({**content, "model_type": "own", "auto_map": names}))
    with suppress(JobError):  # the tokenizer has files that transformers reads with its own code
        Encoder(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_tokenizer_of_a_larger_model_is_refused(tiny):
    with pytest.raises(JobError, match="up to 30521, but the model has 1000 embeddings"):
        Encoder(tiny("bert", vocab_size=1000), device="cpu")


def test_tokenizer_with_an_added_token_without_an_embedding_is_accepted(tiny, tmp_path):
    folder = str(shutil.copytree(tiny("bert"), tmp_path / "added"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(inspect_checkpoint(folder))("<beyond>")["input_ids"] == [101, 30522, 102]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "camembert"])
def test_known_properties_of_an_architecture_equal_those_of_its_code(architecture, tiny, tmp_path, monkeypatch):
    from varve.encoder.checkpoint import inspection

    if architecture == "camembert":
        config = AutoConfig.for_model("camembert", **ARCHITECTURES["roberta"])
        AutoModel.from_config(config).save_pretrained(tmp_path)
        folder = str(tmp_path)
    else:
        folder = tiny(architecture)
    known = inspect_checkpoint(folder)
    monkeypatch.setattr(inspection, "_KNOWN", {})
    assert inspect_checkpoint(folder) == known


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory, minilm):
    """(architecture, changes of its configuration) → folder of a tiny random masked-LM model."""

    def make(name, **changes):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name], **changes)).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
        return folder

    return make


def load_masked_lm(folder):
    return load_model(inspect_checkpoint(str(folder)), head="masked_lm", device=torch.device("cpu"))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "albert", "electra", "mpnet", "modernbert"])
def test_masked_lm_model_with_tied_weights_is_loaded_around_its_encoder(architecture, masked_lm):
    folder = masked_lm(architecture)
    encoder, model = load_masked_lm(folder)
    assert model.base_model is encoder
    assert model.get_output_embeddings().weight is encoder.get_input_embeddings().weight
    want = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    assert {
        name: bool(torch.equal(want[name], weight)) for name, weight in model.state_dict().items()
    } == dict.fromkeys(want, True)


def test_masked_lm_model_with_a_projection_of_its_own_is_loaded_with_it(masked_lm):
    folder = masked_lm("bert", tie_word_embeddings=False)
    encoder, model = load_masked_lm(folder)
    projection = load_file(folder / "model.safetensors")["cls.predictions.decoder.weight"]
    assert torch.equal(model.get_output_embeddings().weight, projection)
    assert not torch.equal(encoder.get_input_embeddings().weight, projection)


@pytest.mark.parametrize("weight", ["cls.predictions.transform.dense.weight", "cls.predictions.bias"])
def test_masked_lm_model_without_a_weight_of_its_head_is_refused(weight, masked_lm):
    folder = masked_lm("bert")
    change_weights(folder, lambda weights: weights.pop(weight))
    with pytest.raises(JobError, match=rf"lacks \d weights of BertForMaskedLM \(.*{weight}.*they would be random"):
        load_masked_lm(folder)


def test_masked_lm_model_without_its_own_projection_is_refused(masked_lm):
    folder = masked_lm("bert", tie_word_embeddings=False)
    change_weights(folder, lambda weights: weights.pop("cls.predictions.decoder.weight"))
    with pytest.raises(JobError, match=r"lacks 1 weights .*decoder\.weight.*they would be random"):
        load_masked_lm(folder)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_checkpoint_without_a_masked_lm_head_is_refused(architecture, tiny):
    with pytest.raises(JobError, match=r"lacks \d weights of \w+ForMaskedLM .*they would be random"):
        load_masked_lm(tiny(architecture))


def test_architecture_without_a_masked_lm_model_is_refused(tiny):
    with pytest.raises(JobError, match=r"cannot load .* Check that AutoModelForMaskedLM\.from_pretrained loads this"):
        load_masked_lm(tiny("gpt2"))


def test_nan_in_the_masked_lm_head_is_refused_with_the_weight(masked_lm):
    folder = masked_lm("bert")
    change_weights(folder, lambda weights: weights["cls.predictions.transform.dense.bias"].fill_(float("nan")))
    with pytest.raises(JobError, match=r"cls\.predictions\.transform\.dense\.bias has 32 of 32 numbers that are NaN"):
        load_masked_lm(folder)
