"""Measures the relevance of dense, sparse, fused and rounded vectors on the Cranfield collection.

python -m tests.bench.relevance FOLDER [--work WORK]

FOLDER holds cran.all.1400, cran.qry and cranqrel, which this project does not ship. The vectors are those of MiniLM and
of a real SPLADE checkpoint; the measures come from the code of `varve search`. The runs take
about four minutes on two cores.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.finished_runs import finish
from tests.splade_checkpoint import splade_folder
from varve import Job
from varve.cli.corpus import model_folder
from varve.indexing.query_file import Questions
from varve.process_state import silence_transformers
from varve.retrieval.evaluation import evaluate
from varve.retrieval.judgements import Judgements
from varve.retrieval.relevance import Relevance
from varve.retrieval.search import open_retriever

# In the file 1 is the most relevant and 4 the least; -1 marks a source document. 2^grade - 1 is its gain.
GRADES = {1: 4, 2: 3, 3: 2, 4: 1, -1: 1}


def main(argv: Sequence[str] | None = None) -> None:
    silence_transformers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, help="folder that keeps the runs (default: a temporary one)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        measure_all(arguments.folder, arguments.work or Path(temporary))


def measure_all(folder: Path, work: Path) -> dict[str, Relevance]:
    work.mkdir(parents=True, exist_ok=True)
    questions, judgements = read_questions(folder / "cran.qry"), read_judgements(folder / "cranqrel")
    source = work / "documents.parquet"
    pq.write_table(read_documents(folder / "cran.all.1400"), source)
    splade = work / "splade"
    dense = run(source, work / "dense", str(model_folder()), "float32")
    rounded = {kind: run(source, work / kind, str(model_folder()), kind) for kind in ("int8", "binary")}
    sparse = run(source, work / "sparse", str(splade) if splade.exists() else splade_folder(splade), "float32")
    searches = {
        "MiniLM": (dense, None),
        "MiniLM, int8": (rounded["int8"], None),
        "MiniLM, binary": (rounded["binary"], None),
        "SPLADE": (sparse, None),
        "MiniLM and SPLADE": (dense, f"{sparse}:embedding"),
        "MiniLM and BM25": (dense, "bm25:text"),
    }
    found = {}
    for name, (path, hybrid) in searches.items():
        with open_retriever(path, hybrid=hybrid) as retriever:
            found[name] = result = evaluate(retriever, questions, judgements, "doc")
        values = {"nDCG@10": result.ndcg_at_10, "recall@100": result.recall_at_100, "MRR@10": result.mrr_at_10}
        text = "  ".join(f"{key} {mean.value:.4f} [{mean.low:.3f}, {mean.high:.3f}]" for key, mean in values.items())
        sys.stdout.write(f"{name:<18} {text}  ({result.num_questions} questions)\n")
        sys.stdout.flush()
    return found


def run(source: Path, path: Path, model: str, dtype: str) -> str:
    columns = {"text": "text", "keep": ["doc", "text"]}
    job = {
        "source": {"dataset": "parquet", "data_files": str(source), **columns},
        "model": {"name": model},
        "features": {"embedding": {"pool": "declared"}},
        "output": {"path": str(path), "dtype": dtype},
    }
    if not (path / "_varve/manifest.json").exists():
        finish(Job.parse(job))
    return str(path)


def read_documents(file: Path) -> pa.Table:
    """Number and text of each abstract; two are empty. The abstract repeats the title."""
    numbers, texts = [], []
    for number, body in re.findall(r"\.I (\d+)\s*\n(.*?)(?=\n\.I \d+\s*\n|\Z)", file.read_text(), re.DOTALL):
        title, text = _field(body, r"\.T\n(.*?)\n\.A"), _field(body, r"\.W\n(.*)")
        numbers.append(number)
        texts.append(text if text.startswith(title) else f"{title} {text}".strip())
    return pa.table({"doc": numbers, "text": texts})


def _field(body: str, pattern: str) -> str:
    match = re.search(pattern, body, re.DOTALL)
    return " ".join(match[1].split()) if match else ""


def read_questions(file: Path) -> Questions:
    """The judgements count the questions from 1; the numbers of the file itself have gaps."""
    bodies = re.findall(r"\.I \d+\s*\n(.*?)(?=\n\.I \d+\s*\n|\Z)", file.read_text(), re.DOTALL)
    texts = tuple(" ".join(body.split(".W")[1].split()) for body in bodies)
    return Questions(tuple(str(number) for number in range(1, len(texts) + 1)), texts)


def read_judgements(file: Path) -> Judgements:
    found: dict[str, dict[str, int]] = {}
    for line in file.read_text().splitlines():
        question, document, relevance = line.split()[:3]
        found.setdefault(question, {})[document] = GRADES.get(int(relevance), 0)
    return Judgements(found)


if __name__ == "__main__":
    main()
