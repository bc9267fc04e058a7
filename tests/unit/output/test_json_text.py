import json
import os

import pytest

from varve.errors import RunError
from varve.output.json_text import MAX_BYTES, parse_object
from varve.output.manifest import MANIFEST_NAME, read_manifest
from varve.planning.saved_job import JOB_NAME, read_job
from varve.storage.object_store import Storage


def test_object_is_parsed_with_characters_beyond_the_basic_plane():
    content = {"text": "a 🙂 ü", "numbers": [1, 2.5, None]}
    assert parse_object(json.dumps(content)) == content
    assert parse_object(json.dumps(content, ensure_ascii=False).encode()) == content


@pytest.mark.parametrize(
    "content",
    [b"", b"1", b"[]", b"[" * 10_000, b'{"a":' * 10_000, b"\xff", b'"\\ud800"', b'{"a": "\\ud83d"}', b"9" * 9999]
    + [b'{"a": "\xed\xa0\x80"}', '{"a": "\ud800"}', '{"a": 1}'.encode("utf-16")]
    + [b'{"a": ' + opened * 400 + b"0" + closed * 400 + b"}" for opened, closed in ((b"[", b"]"), (b'{"a":', b"}"))],
)
def test_content_that_is_no_plain_object_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_object(content)


def test_depth_of_a_job_is_parsed():
    content = {"a": json.loads("[" * 60 + "]" * 60)}
    assert parse_object(json.dumps(content)) == content


@pytest.mark.parametrize(("name", "read"), [(MANIFEST_NAME, read_manifest), (JOB_NAME, read_job)])
def test_file_beyond_the_limit_is_refused_without_being_read(name, read, tmp_path):
    (tmp_path / "_varve").mkdir()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 100 * MAX_BYTES)  # without blocks on the disk
    with pytest.raises(RunError, match="expected at most"):
        read(Storage(str(tmp_path)))
    assert Storage(str(tmp_path)).read_at_most("_varve/absent", MAX_BYTES) is None
