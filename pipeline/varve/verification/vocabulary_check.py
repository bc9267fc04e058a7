"""Checks that the vocabulary of an output with sparse vectors is the one with which its parts were written.

Reads no part: `part_check` compares their ids with the width of the column.
"""

from collections.abc import Sequence

import pyarrow as pa

from varve.encoder.feature_plan import Column
from varve.errors import RunError
from varve.output.schema import read_metadata
from varve.output.vocabulary import VOCABULARY_KEY, VOCABULARY_NAME, hash_vocabulary, parse_vocabulary, read_content
from varve.storage.object_store import Storage
from varve.verification.check import Check


def check_vocabulary(storage: Storage, schema: pa.Schema, features: Sequence[Column]) -> Check | None:
    """Compare the vocabulary with the schema of the parts; None for an output without sparse columns.

    Args:
        storage: of the output.
        schema: of a part.
        features: its feature columns.
    """
    widths = [column.width for column in features if column.form == "sparse"]
    if not widths:
        return None
    try:
        content = read_content(storage)
        tokens = parse_vocabulary(content, storage.uri)
    except RunError as e:
        return Check("vocabulary", (str(e),))
    recorded, found = read_metadata(schema).get(VOCABULARY_KEY), hash_vocabulary(content)
    failures = []
    if recorded != found:
        failures.append(f"the SHA-256 of {VOCABULARY_NAME} is {found}, the parts were written with {recorded}")
    if len(tokens) != max(widths):
        failures.append(f"{VOCABULARY_NAME} has {len(tokens):,} tokens, the sparse columns have {max(widths):,} ids")
    return Check("vocabulary", tuple(failures))
