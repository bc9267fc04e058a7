"""Reads `_varve/job.json`, the job and the resolved plan of an output, and checks the types and ranges of its values.

Knows nothing of sources and models: nothing that the file names is opened, imported or run. Invariant: what
`read_job` returns can be used without further checks, whoever wrote the file.
"""

import base64
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from varve.config.base import Section
from varve.errors import JobError
from varve.output.json_text import MAX_BYTES, parse_object
from varve.output.manifest import JOB_NAME
from varve.planning.plan import Resolved
from varve.storage.object_store import Storage

# Far more than a real job needs. Within these limits sums and products of rows fit 64 bits.
MAX_ROWS = 10**12  # of a shard
_MAX_SHARDS_PER_FILE = 1000

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Bytes = Annotated[int, Field(ge=0, le=2**60)]
_Rows = Annotated[int, Field(ge=0, le=MAX_ROWS)]


class _Shards(Section):
    files: list[Annotated[int, Field(ge=0)]] | None
    rows: list[_Rows] | None
    text_bytes: list[_Bytes] | None = None


class _Files(Section):
    """The source's files when the job was planned."""

    files: list[str]
    versions: list[str] | None
    shards: _Shards


class _Code(Section):
    """Where the code of the run's functions was, and its hashes."""

    folder: str
    identity: dict[str, _Hash]


class _SavedJob(Section):
    model_config = ConfigDict(extra="ignore", strict=True)

    fingerprint: _Hash
    created_at: str
    job: dict[str, Any]
    resolved: dict[str, Any]
    source: _Files
    code: _Code | None = None


@dataclass(frozen=True, slots=True)
class _Limits:
    """Ranges of the values of `Resolved` that decide how much is computed."""

    num_shards: Annotated[int, Field(ge=0)]
    rows_per_part: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    block_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    tokens_per_pack: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_ROWS)]


_RESOLVED, _LIMITS = TypeAdapter(Resolved), TypeAdapter(_Limits)


def read_job(storage: Storage) -> dict[str, Any] | None:
    """Read job.json of an output; None if it does not exist.

    Raises:
        JobError: this version of Varve cannot read it, or a value is outside its range.
    """
    content = storage.read_at_most(JOB_NAME, MAX_BYTES)
    if content is None:
        return None
    try:
        return _decode(content)
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as e:
        problem = _first_problem(e) if isinstance(e, ValidationError) else f"{type(e).__name__} {e}"
        msg = f"{storage.uri}/{JOB_NAME} cannot be read by this version of Varve: {problem}"
        raise JobError(msg) from e


def _decode(content: bytes) -> dict[str, Any]:
    stored = parse_object(content)
    saved = _SavedJob.model_validate(stored)
    resolved = Resolved(**stored["resolved"])
    values = json.dumps(asdict(resolved))
    _RESOLVED.validate_json(values, strict=True)
    _LIMITS.validate_json(values, strict=True)
    pa.ipc.read_schema(pa.py_buffer(base64.b64decode(resolved.schema, validate=True)))
    _check_shards(saved.source, resolved.num_shards)
    return stored


def _check_shards(source: _Files, num_shards: int) -> None:
    """Check that the lists of the source fit each other and the number of shards."""
    shards = source.shards
    if source.versions is not None and len(source.versions) != len(source.files):
        msg = f"source.versions has {len(source.versions)} entries for {len(source.files)} files"
        raise ValueError(msg)
    for name, values in (("files", shards.files), ("rows", shards.rows), ("text_bytes", shards.text_bytes)):
        if values is not None and len(values) != num_shards:
            msg = f"resolved.num_shards is {num_shards}, source.shards.{name} has {len(values)} entries"
            raise ValueError(msg)
    if shards.files is not None and max(shards.files, default=-1) >= len(source.files):
        msg = f"source.shards.files names file {max(shards.files)} of {len(source.files)}"
        raise ValueError(msg)
    if num_shards > (limit := _MAX_SHARDS_PER_FILE * max(1, len(source.files))):
        msg = f"resolved.num_shards is {num_shards}: expected at most {limit} for {len(source.files)} file(s)"
        raise ValueError(msg)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the content'}: {first['msg']}"
