"""The names of the objects that Varve writes below an output's path."""

import re

_OF_A_SET = (
    r"_varve/.+|data/part-\d{5,}-\d{12}-\d{12}\.parquet|"
    r"(?:maps|predictions)/[^/]+/.+\.(?:parquet|json)|README\.md|report\.html"
)
OBJECT_NAMES = re.compile(rf"(?:sets/[^/]+/)?(?:{_OF_A_SET})")
