"""The dataset card of an output: README.md, from which `datasets` and the Hub read its configurations, types and rows.

A function of the finished feature sets that the listing shows, so it can be written again at any time. Knows nothing of
the Hub. Invariants: a card that a person wrote or changed is kept; no other object of the output is read or written
because of it, so an output without a card is complete.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence

import yaml

from varve.encoder.feature_plan import Column
from varve.errors import JobError, RunError
from varve.output.card_features import card_features
from varve.output.feature_sets import JoinedOutput, list_sets
from varve.output.feature_sets import open as open_output
from varve.output.run_output import Output

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
_FIRST = "default"  # the configuration that `load_dataset` opens without a name
_SPLIT = re.compile(r"\w+(\.\w+)*")  # what `datasets` accepts as the name of a split
_MARK = "<!-- varve: sha256 of the text above: {} -->\n"
_MARKED = re.compile(r"<!-- varve: sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_MAX_CARD_BYTES = 16 * 2**20
# Upper limits of the Hub's size categories, in rows.
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"} | {
    10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B", 10**11: "10B<n<100B", 10**12: "100B<n<1T"
}  # fmt: skip


def update_card(path: str) -> None:
    """Write the card of an output, or write it again if a feature set was added; a failure is logged.

    Two runs that finish at the same time may list different sets, so the sets are listed again after each write.

    Args:
        path: of the first feature set, which has finished.
    """
    try:
        output = open_output(path)
        while True:
            sets = list_sets(output.storage)
            _write(output)
            if list_sets(output.storage) == sets:
                return
            output = open_output(path)
    except JobError:  # it has no rows, so no part has a schema
        return
    except RunError as e:
        logger.warning("%s: the dataset card %s was not written: %s", path, CARD_NAME, e)


def dataset_card(output: Output) -> str:
    """The text of the card: a header in YAML, and a description in Markdown.

    Its features are written so that versions 3 to 5 of `datasets` read the same types from them.
    """
    sets = _named_sets(output)
    header = {
        "configs": [_files(name, each) for name, each in sets],
        "dataset_info": [_info(name, each) for name, each in sets],
        "tags": ["embeddings", "varve"],
        "size_categories": [next((size for limit, size in _SIZES.items() if output.manifest.num_rows < limit), "n>1T")],
    }
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
    body = "\n".join([*_introduction(output, sets), *(line for name, each in sets for line in _describe(name, each))])
    return f"---\n{text}---\n{body}\n"


def _write(output: Output) -> None:
    storage, text = output.storage, dataset_card(output)
    content = (text + _MARK.format(_sha256(text))).encode()
    stored = storage.read_at_most(CARD_NAME, _MAX_CARD_BYTES)
    if stored is None:
        storage.create(CARD_NAME, content)
    elif not _is_own(stored):
        logger.info("%s/%s was written or changed by hand, and is kept", storage.uri, CARD_NAME)
    elif stored != content:
        storage.write(CARD_NAME, len(content), lambda: [content])


def _is_own(content: bytes) -> bool:
    """Whether a card is as Varve wrote it."""
    text = content.decode(errors="replace")
    mark = _MARKED.search(text)
    return mark is not None and mark[1] == _sha256(text[: mark.start()])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _named_sets(output: Output) -> list[tuple[str, Output]]:
    """(name of the configuration, feature set), the first set first."""
    if not isinstance(output, JoinedOutput):
        return [(_FIRST, output)]
    return [(_FIRST if each.path == output.path else each.path.rpartition("/")[2], each) for each in output.sets]


def _split(each: Output) -> str:
    name = each.manifest.job["source"].get("split") or ""
    return name if _SPLIT.fullmatch(name) else "train"


def _files(name: str, each: Output) -> dict:
    folder = "data" if name == _FIRST else f"sets/{name}/data"
    return {"config_name": name, "data_files": [{"split": _split(each), "path": f"{folder}/*.parquet"}]}


def _info(name: str, each: Output) -> dict:
    manifest, features = each.manifest, card_features(each.schema)
    num_bytes = int(manifest.parts.columns["data_bytes"].to_numpy().sum())
    splits = [{"name": _split(each), "num_bytes": num_bytes, "num_examples": manifest.num_rows}]
    described = {} if features is None else {"features": features}
    sizes = {"download_size": manifest.file_bytes, "dataset_size": num_bytes}
    return {"config_name": name, **described, "splits": splits, **sizes}


def _introduction(output: Output, sets: Sequence[tuple[str, Output]]) -> Iterator[str]:
    source = output.manifest.job["source"]
    data = source.get("data_files") or source.get("dataset") or source.get("table")
    yield f"# Features of {_line(data)}"
    yield ""
    yield f"{output.manifest.num_rows:,} rows, one for each row of {_code(data)}."
    yield "`shard` and `row` are the key of a row. Rows with `error` have no features."
    yield ""
    names = "" if len(sets) == 1 else " Further feature sets of the same rows: " + ", ".join(
        f'`load_dataset(PATH, "{name}")`' for name, _ in sets if name != _FIRST
    ) + "."  # fmt: skip
    yield f"`load_dataset(PATH)` of `datasets` opens it, where PATH is this folder or its name on the Hub.{names}"


def _describe(name: str, each: Output) -> Iterator[str]:
    manifest, metadata = each.manifest, each.metadata
    yield from ("", f"## {'Features' if name == _FIRST else f'Feature set {_code(name)}'}", "")
    yield from ("| column | vector | dimensions | stored as |", "| --- | --- | --- | --- |")
    for column in each.features.values():
        text = manifest.descriptions.get(column.name) or _describe_column(column)
        yield f"| {_code(column.name)} | {_line(text)} | {column.width} | {column.dtype} |"
    yield ""
    revision = f", revision {_code(metadata['revision'])}" if metadata["revision"] else ""
    versions = ", ".join(f"{library} {version}" for library, version in manifest.versions.items())
    yield f"- model: {_code(metadata['model'])}{revision}, weights sha256 {_code(metadata['weights_sha256'])}"
    yield f"- texts: up to {metadata['max_tokens']} tokens; {manifest.num_truncated:,} rows truncated"
    yield f"- rows: {manifest.num_rows:,}, of which {manifest.num_null_texts:,} null and {manifest.num_errors:,} failed"
    yield f"- tokens: {manifest.num_tokens:,}"
    yield f"- checked: {_canary(manifest.canary)}"
    yield f"- written with: {_line(versions)}"


def _describe_column(column: Column) -> str:
    layers = ", ".join(map(str, column.layers))
    combined = f", {column.combine}" if column.combine else ""
    unit = ", length 1" if column.normalize else ""
    return f"{column.pool} of layer{'s' if len(column.layers) > 1 else ''} {layers}{combined}{unit}"


def _canary(canary: dict) -> str:
    largest = max((each["relative"] for each in canary["features"].values() if "relative" in each), default=None)
    difference = "" if largest is None else f"; largest relative difference {largest:.1e}"
    return f"{canary['rows']} rows were encoded again by plain transformers in float32{difference}"


def _code(value: object) -> str:
    """As code in Markdown: in one line, and without backticks, which would end it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_line(text.replace('`', chr(39)), escape=False)}`"


def _line(text: object, *, escape: bool = True) -> str:
    """In one line of a table; `<` would begin HTML."""
    line = " ".join(str(text).split()).replace("|", r"\|")
    return line.replace("<", "&lt;") if escape else line
