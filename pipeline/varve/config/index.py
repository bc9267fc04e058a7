"""The index file (index.yaml): which feature of a finished output becomes which search index.

Knows nothing of outputs, libraries and servers. Passwords are not part of an index file: servers read them from the
environment (PGPASSWORD, QDRANT_API_KEY).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from varve.config.base import Name, PositiveInt, Section, to_tuple
from varve.config.credentials import Location
from varve.config.validation_errors import validate_section
from varve.config.yaml_text import read_yaml_file
from varve.errors import JobError

TARGETS = ("npy", "fbin", "faiss", "usearch", "lance", "ndjson", "postgresql", "qdrant")
_IDENTITY = ("feature", "kind", "recall", "memory", "queries", "key", "keep", "shards")
_SIZE = r"^\s*(\d+\.?\d*|\.\d+)(e\d{1,2})?\s*([KMGTkmgt]i?)?[Bb]?\s*$"


class Index(Section):
    """One search index of one feature of a finished output."""

    path: Location = Field(description="output of a finished run")
    to: Location = Field(
        description="TARGET:DEST, where TARGET is npy, fbin, faiss, usearch, lance or ndjson and DEST a folder or "
        "object store prefix; or postgresql://HOST/DATABASE?table=NAME, or qdrant://HOST:PORT/COLLECTION"
    )
    feature: Name | None = Field(default=None, description="null: the output's only feature that the target can index")
    kind: Name = Field(
        default="auto",
        description="type of the index, as the target names it (HNSW32,SQ8 or IVF4096,SQ8 in FAISS); "
        "auto: the first candidate within `memory` that reaches `recall`",
    )
    recall: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="recall@10 that the lower end of the 95 % interval must reach"
    )
    memory: str | None = Field(
        default=None, description="of the finished index, such as 4GB; null: half of this machine's memory"
    )
    queries: Location | None = Field(
        default=None, description="JSON Lines or Parquet file with a column `text`: recall is also measured with these"
    )
    key: Name | None = Field(
        default=None, description="kept column that identifies a document in a server; null: shard and row"
    )
    keep: tuple[Name, ...] = Field(default=(), description="kept columns that are copied to the index")
    send: Location | None = Field(
        default=None, description="URL of an OpenSearch or Elasticsearch server that receives the documents of ndjson"
    )
    shards: PositiveInt | None = Field(
        default=None, description="graph indexes that are built one per task and searched together; null: chosen"
    )

    _keep_as_tuple = field_validator("keep", mode="before")(to_tuple)

    @field_validator("to")
    @classmethod
    def _check_target(cls, to: str) -> str:
        target, colon, destination = to.partition(":")
        if target not in TARGETS or not colon or not destination.strip("/"):
            msg = f"{to!r} is not allowed: expected TARGET:DEST, where TARGET is one of {', '.join(TARGETS)}"
            raise ValueError(msg)
        return to

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, memory: str | None) -> str | None:
        if memory is not None and not re.match(_SIZE, memory):
            msg = f"{memory!r} is not allowed: expected bytes, or a size such as 4GB or 4GiB"
            raise ValueError(msg)
        return memory

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if len({*self.columns}) != len(self.columns):
            msg = "keep lists a column twice, or the column of key"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_send(self) -> Self:
        if self.send and self.target != "ndjson":
            msg = f"send needs documents: expected ndjson:DEST as the value of to, not {self.to!r}"
            raise ValueError(msg)
        return self

    @classmethod
    def load(cls, path: str) -> Self:
        """Read an index file.

        Raises:
            JobError: the file is missing or not a YAML mapping, or a key or a value is wrong.
        """
        content = read_yaml_file(path)
        if not isinstance(content, dict):
            msg = f"{path}: expected a mapping with the keys {', '.join(cls.model_fields)}"
            raise JobError(msg)
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "index") -> Self:
        """Validate a mapping; messages begin with `where`.

        Raises:
            JobError: with one line per error: the key, the value, what is allowed.
        """
        return validate_section(cls, content, where)

    @property
    def target(self) -> str:
        """The part of `to` before the first colon."""
        return self.to.partition(":")[0]

    @property
    def destination(self) -> str:
        """The rest of `to` without the slashes that begin an authority: a folder, or HOST/DATABASE?table=NAME."""
        rest = self.to.partition(":")[2]
        return rest.removeprefix("//") if self.target in {"postgresql", "qdrant"} else rest

    @property
    def columns(self) -> tuple[str, ...]:
        """The kept columns that are stored in the index, the key first."""
        return ((self.key,) if self.key else ()) + self.keep

    def identity(self) -> dict[str, Any]:
        """The values that decide the content of the index."""
        content = self.model_dump(mode="json")
        return {name: content[name] for name in _IDENTITY}
