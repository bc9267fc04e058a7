"""A fine-tuned checkpoint's CLS beside hand-crafted columns, into an MLP: more than either knows alone."""

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
TUNING_TEXTS, TEXTS, BLOCK = 250, 100, 5  # of a package: to fine-tune on, others to ask about, those of one group
TUNING_PAIRS, PAIRS_OF_A_BLOCK = 2400, 60
MAX_TOKENS, BATCH = 40, 32


def pairs(texts: dict[str, list[str]], count: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """(first texts, second texts, 1 where both are of one package), half of them so."""
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
    """MiniLM's first two layers, fine-tuned to say of two docstrings whether they are of one package."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_hidden_layers=2, num_labels=2)
    model.base_model.embeddings.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-4)
    first, second, same = pairs({name: found[:TUNING_TEXTS] for name, found in texts.items()}, TUNING_PAIRS, seed=1)
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
def asked_about(texts, tmp_path) -> str:
    """Pairs of other docstrings, in groups that share none: no text stands on both sides of a split."""
    columns = {"premise": [], "hypothesis": [], "same": [], "block": []}
    for block, start in enumerate(range(TUNING_TEXTS, TUNING_TEXTS + TEXTS, BLOCK)):
        some = {name: found[start : start + BLOCK] for name, found in texts.items()}
        found = (*pairs(some, PAIRS_OF_A_BLOCK, seed=block), [block] * PAIRS_OF_A_BLOCK)
        for column, values in zip(columns.values(), found, strict=True):
            column.extend(values)
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "docs/0.parquet")
    return str(tmp_path / "docs")


def test_tuned_cls_with_handcrafted_columns_is_told_apart_no_worse_than_by_either_alone(
    tuned, asked_about, run, tmp_path, capsys
):
    shutil.copy(RECIPES / "pair_features.py", tmp_path)
    functions = {name: {"python": f"pair_features:{name}", "type": "float32"} for name in ("overlap", "length_ratio")}
    job = {
        "source": {"dataset": asked_about, "text": ["premise", "hypothesis"], "keep": ["same", "block"]},
        "model": {"name": tuned, "max_tokens": MAX_TOKENS},
        "features": {"cls": {"pool": "cls"}, **functions},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    path = run(Job.load(str(tmp_path / "job.yaml"))).path
    capsys.readouterr()
    argv = ["probe", path, "--label", "same", "--with", "overlap,length_ratio", "--groups", "block", "--model", "mlp"]
    assert run_command([*argv, "--text", "none", "--output", str(tmp_path / "probe"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    auc = {result["name"]: result["test"]["auc"]["value"] for result in told["results"]}
    assert auc["cls"] >= max(auc["cls alone"], auc["hand-crafted alone"])
    assert min(auc["cls alone"], auc["hand-crafted alone"]) > 0.6
