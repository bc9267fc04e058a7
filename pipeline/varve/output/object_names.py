"""The names of the objects that Varve writes below an output's path."""

import re

_OF_A_SET = "|".join(
    (
        r"_varve/.+",
        r"data/part-\d{5,}-\d{12}-\d{12}\.parquet",
        r"(?:maps|predictions)/[^/]+/.+\.(?:parquet|json)",
        r"README\.md",
        r"report\.html",
    )
)
OBJECT_NAMES = re.compile(rf"(?:sets/[^/]+/)?(?:{_OF_A_SET})")
