"""The address of a collection of a Qdrant server: HOST[:PORT]/NAME[?https=true].

Invariant: an address holds no credential; the key is read from the environment (QDRANT_API_KEY) where a connection is
made.
"""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from varve.errors import JobError

DEFAULT_PORT = 6333
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_EXPECTED = "expected qdrant://HOST[:PORT]/COLLECTION[?https=true]"


@dataclass(frozen=True, slots=True)
class QdrantAddress:
    """A server, and the name under which its clients find the index.

    Attributes:
        url: http or https, host and port.
        name: of the alias.
    """

    url: str
    name: str

    @classmethod
    def parse(cls, destination: str) -> Self:
        """Parse the part of the address after `qdrant://`.

        Raises:
            JobError: it is malformed, names no collection, or holds a password or key, which the message does not show.
        """
        parts = urlsplit(f"//{destination}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "@" in parts.netloc or "key" in parts.query.lower():
            msg = f"a Qdrant address must not hold a password or key: set QDRANT_API_KEY instead; {_EXPECTED}"
            raise JobError(msg)
        try:
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError as e:
            msg = f"qdrant://{destination}: {e}; {_EXPECTED}"
            raise JobError(msg) from e
        name = parts.path.strip("/")
        if not host or not _NAME.fullmatch(name) or "__" in name:
            msg = (
                f"qdrant://{destination}: the name of the collection is {name!r}; {_EXPECTED}. A name consists of "
                "letters, digits, dots, hyphens and single underscores"
            )
            raise JobError(msg)
        if options.keys() - {"https"} or options.get("https", "true") not in {"true", "false"}:
            msg = f"qdrant://{destination}: unknown option {parts.query!r}; {_EXPECTED}"
            raise JobError(msg)
        scheme = "https" if options.get("https") == "true" else "http"
        shown = f"[{host}]" if ":" in host else host
        return cls(f"{scheme}://{shown}:{port}", name)

    def __str__(self) -> str:
        """The address in the form of `--to`."""
        scheme, _, server = self.url.partition("://")
        return f"qdrant://{server}/{self.name}{'?https=true' if scheme == 'https' else ''}"
