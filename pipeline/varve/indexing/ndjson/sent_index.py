"""The index of a server that receives the documents: created empty, filled, counted, then published by an alias.

Invariants: readers, who use the alias, see the previous index until all documents are there; the index is named after
its request, so two builds never share one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from varve.errors import JobError, RunError
from varve.indexing.ndjson.search_server import SearchServer, escape
from varve.indexing.rows import POSITION

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,199}")
_LOADING = {"refresh_interval": "-1", "number_of_replicas": 0}
_EXISTS = "already exists"


@dataclass(frozen=True, slots=True)
class SentIndex:
    """An index on a server.

    Attributes:
        server: the server.
        alias: the name that readers use.
    """

    server: SearchServer
    alias: str

    @classmethod
    def parse(cls, url: str, destination: str) -> "SentIndex":
        """The index of a URL with `?index=NAME`; without a name, that of the destination's last folder.

        Raises:
            JobError: the URL or the name is not allowed.
        """
        names = parse_qs(urlsplit(url).query).get("index", [])
        alias = names[-1] if names else destination.rstrip("/").rpartition("/")[2].lower()
        if not _NAME.fullmatch(alias):
            msg = f"send: {alias!r} cannot be the name of an index: expected {_NAME.pattern}. Append ?index=NAME"
            raise JobError(msg)
        return cls(SearchServer.parse(url), alias)

    def name(self, fingerprint: str) -> str:
        """The name of the index behind the alias."""
        return f"{self.alias}__{fingerprint[:8]}"

    def check(self) -> None:
        """Contact the server, before anything is written.

        Raises:
            JobError: the alias is the name of an index.
            RunError: the server cannot be reached.
        """
        impatient = replace(self.server, patient=False)
        found = impatient.request("GET", escape(self.alias), allowed=(404,))
        if found.status != 404 and self.alias in found.body:
            msg = (
                f"{self.server.url}/{self.alias} is an index, not an alias. Delete it, or append ?index=NAME to the URL"
            )
            raise JobError(msg)

    def is_published(self, fingerprint: str) -> bool:
        """Whether the alias names the index of this request."""
        impatient = replace(self.server, patient=False)
        return self.name(fingerprint) in _aliased(impatient, self.alias)

    def is_opensearch(self) -> bool:
        """Whether the server is OpenSearch, and not Elasticsearch."""
        version = self.server.request("GET", "").body.get("version", {})
        return version.get("distribution") == "opensearch"

    def create(self, fingerprint: str, body: Mapping[str, Any]) -> None:
        """Create the index without replicas and without refreshes, unless it exists."""
        settings = {"index": {**body["settings"]["index"], **_LOADING}}
        path = escape(self.name(fingerprint))
        answer = self.server.request("PUT", path, {**body, "settings": settings}, allowed=(400,))
        if answer.status == 400 and _EXISTS not in answer.reason:
            msg = f"{self.server.url}/{self.name(fingerprint)} cannot be created: {answer.reason}"
            raise RunError(msg)
        if answer.status == 400:
            self.server.request("POST", f"{path}/_refresh")  # so that `count` finds what was sent before

    def count(self, fingerprint: str, positions: range) -> int:
        """Number of documents with these positions that searches see."""
        query = {"query": {"range": {POSITION: {"gte": positions.start, "lt": positions.stop}}}}
        return int(self.server.request("POST", f"{escape(self.name(fingerprint))}/_count", query).body["count"])

    def publish(self, fingerprint: str, num_documents: int) -> dict[str, Any]:
        """Count the documents, set the server's defaults, and switch the alias in one step.

        Returns:
            What the manifest records.

        Raises:
            RunError: the index has another number of documents.
        """
        name = self.name(fingerprint)
        path = escape(name)
        self.server.request("POST", f"{path}/_refresh")
        counted = int(self.server.request("GET", f"{path}/_count").body["count"])
        if counted != num_documents:
            found = f"{counted:,} documents, expected {num_documents:,}"
            msg = f"{self.server.url}/{name} has {found}. Delete it, and run the same command again"
            raise RunError(msg)
        defaults = dict.fromkeys(_LOADING)
        self.server.request("PUT", f"{path}/_settings", {"index": defaults})
        self._switch(name)
        return {"server": self.server.url, "index": name, "alias": self.alias, "documents": counted}

    def _switch(self, name: str) -> None:
        """Point the alias to this index; indexes of earlier builds behind it are removed, others lose the alias."""
        others = [index for index in _aliased(self.server, self.alias) if index != name]
        ours = re.compile(re.escape(self.alias) + r"__[0-9a-f]{8}")
        removed = [
            {"remove_index": {"index": index}}
            if ours.fullmatch(index)
            else {"remove": {"index": index, "alias": self.alias}}
            for index in others
        ]
        actions = [{"add": {"index": name, "alias": self.alias}}, *removed]
        answer = self.server.request("POST", "_aliases", {"actions": actions}, allowed=(404,))
        # 404: a repeated request, whose first response was lost, finds that the others are removed.
        if answer.status == 404 and _aliased(self.server, self.alias) != [name]:
            msg = f"{self.server.url}: the alias {self.alias} cannot be switched: {answer.reason}"
            raise RunError(msg)


def _aliased(server: SearchServer, alias: str) -> list[str]:
    """Names of the indexes behind an alias."""
    found = server.request("GET", f"_alias/{escape(alias)}", allowed=(404,))
    return [] if found.status == 404 else list(found.body)
