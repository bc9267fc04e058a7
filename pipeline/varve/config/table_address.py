"""Addresses of lake tables in job files and commands.

    iceberg://CATALOG/NAMESPACE.TABLE    a table of a catalog that pyiceberg is configured for
    delta+PATH                           a Delta table: delta+s3://bucket/docs, delta+file:///data/docs, delta+docs
    lance+PATH                           a Lance dataset: lance+s3://bucket/docs.lance, lance+docs.lance

Invariant: an address holds no credential; those come from the environment and from pyiceberg's own configuration.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from varve.config.base import local_path
from varve.config.credentials import Location

_EXPECTED = "expected iceberg://CATALOG/NAMESPACE.TABLE, delta+PATH or lance+PATH"


@dataclass(frozen=True, slots=True)
class TableAddress:
    """A parsed address.

    Attributes:
        format: of the table.
        catalog: name in pyiceberg's configuration; empty for Delta and Lance.
        name: identifier of an Iceberg table, such as db.docs; absolute path or URI of a Delta or Lance table.
    """

    format: Literal["iceberg", "delta", "lance"]
    catalog: str
    name: str

    def __str__(self) -> str:
        return f"iceberg://{self.catalog}/{self.name}" if self.format == "iceberg" else f"{self.format}+{self.name}"


def is_table(text: str) -> bool:
    """Whether a path of a command is the address of a table."""
    return text.startswith(("iceberg://", "delta+", "lance+"))


def parse_table_address(text: str) -> TableAddress:
    """Parse an address; a relative path is one of the current folder.

    Raises:
        ValueError: it is not the address of a table.
    """
    if text.startswith("iceberg://"):
        catalog, _, name = text.removeprefix("iceberg://").partition("/")
        if catalog and "/" not in name and len(levels := name.split(".")) > 1 and all(levels):
            return TableAddress("iceberg", catalog, name)
    for kind in ("delta", "lance"):
        path = text.removeprefix(f"{kind}+")
        if path and path != text:
            path = local_path(path)
            return TableAddress(
                kind, "", path.rstrip("/") if "://" in path else str(Path(path).expanduser().absolute())
            )
    msg = f"{text!r} is not the address of a table: {_EXPECTED}"
    raise ValueError(msg)


def _check(text: str) -> str:
    parse_table_address(text)
    return text


TableLocation = Annotated[Location, AfterValidator(_check)]
