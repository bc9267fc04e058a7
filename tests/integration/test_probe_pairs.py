"""An MLP on a fine-tuned checkpoint's CLS and hand-crafted columns predicts more than either alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.docstrings import docstrings
from varve import Job
from varve.cli.main import run_command

RECIPES = Path(__file__).parents[2] / "jobs/recipes"
PACKAGES = ("moto", "networkx", "pandas", "sympy")
TUNING_TEXTS, TEXTS, BLOCK = 250, 100, 5  # per package: to fine-tune on, to probe, in one group
TUNING_PAIRS, PAIRS_PER_BLOCK = 1600, 60
MAX_TOKENS, BATCH = 40, 32


def pairs(texts: dict[str, list[str]], count: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """(first texts, second texts, 1 if both are of one package and 0 if not); half of the pairs each."""
    draw = np.random.default_rng(seed)
    first, second, same = [], [], []
    for at in range(count):
        one, other = draw.choice(list(texts), 2, replace=False)
        other = one if at % 2 else other
        a, b = draw.choice(min(len(texts[one]), len(texts[other])), 2, replace=False)
        first.append(texts[one][a])
        second.append(texts[other][b])
        same.append(at % 2)
    return first, second, same


@pytest.fixture(scope="module")
def texts():
    return {package: docstrings(package, TUNING_TEXTS + TEXTS) for package in PACKAGES}


@pytest.fixture(scope="module")
def tuned(texts, minilm, tmp_path_factory) -> str:
    """MiniLM's first two layers, fine-tuned to predict whether two docstrings are of one package."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_hidden_layers=2, num_labels=2)
    model.base_model.embeddings.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-4)
    first, second, same = pairs({name: strings[:TUNING_TEXTS] for name, strings in texts.items()}, TUNING_PAIRS, seed=1)
    for start in [*range(0, TUNING_PAIRS, BATCH)] * 2:
        batch = slice(start, start + BATCH)
        inputs = tokenizer(
            first[batch], second[batch], truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
        )
        model.train()(**inputs, labels=torch.tensor(same[batch])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("tuned")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def probe_pairs(texts, tmp_path) -> str:
    """Pairs of other docstrings, in groups that share no text, so that no text is in two splits."""
    columns = {"premise": [], "hypothesis": [], "same": [], "block": []}
    for block, start in enumerate(range(TUNING_TEXTS, TUNING_TEXTS + TEXTS, BLOCK)):
        block_texts = {name: strings[start : start + BLOCK] for name, strings in texts.items()}
        block_columns = (*pairs(block_texts, PAIRS_PER_BLOCK, seed=block), [block] * PAIRS_PER_BLOCK)
        for column, values in zip(columns.values(), block_columns, strict=True):
            column.extend(values)
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "docs/0.parquet")
    return str(tmp_path / "docs")


def test_tuned_cls_with_handcrafted_columns_is_at_least_as_good_as_either_alone(
    tuned, probe_pairs, run, tmp_path, capsys
):
    shutil.copy(RECIPES / "pair_features.py", tmp_path)
    functions = {name: {"python": f"pair_features:{name}", "type": "float32"} for name in ("overlap", "length_ratio")}
    job = {
        "source": {"dataset": probe_pairs, "text": ["premise", "hypothesis"], "keep": ["same", "block"]},
        "model": {"name": tuned, "max_tokens": MAX_TOKENS},
        "features": {"cls": {"pool": "cls"}, **functions},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    path = run(Job.load(str(tmp_path / "job.yaml"))).path
    capsys.readouterr()
    argv = ["probe", path, "--label", "same", "--with", "overlap,length_ratio", "--groups", "block", "--model", "mlp"]
    assert run_command([*argv, "--text", "none", "--output", str(tmp_path / "probe"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    auc = {result["name"]: result["test"]["auc"]["value"] for result in content["results"]}
    assert auc["cls"] >= max(auc["cls alone"], auc["hand-crafted alone"])
    assert min(auc["cls alone"], auc["hand-crafted alone"]) > 0.6
