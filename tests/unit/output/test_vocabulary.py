import pytest

from varve.errors import RunError
from varve.output.vocabulary import VOCABULARY_NAME, encode_vocabulary, list_tokens, read_vocabulary, write_vocabulary
from varve.storage.object_store import Storage

TOKENS = ["[PAD]", "é", '"quoted"', "", "▁的", "\x00"]


def test_vocabulary_is_read_back(tmp_path):
    storage = Storage(str(tmp_path))
    content = encode_vocabulary(TOKENS)
    write_vocabulary(storage, content)
    write_vocabulary(storage, content)
    assert read_vocabulary(storage) == TOKENS
    assert (tmp_path / VOCABULARY_NAME).read_bytes() == content


def test_other_vocabulary_at_the_same_path_is_refused(tmp_path):
    storage = Storage(str(tmp_path))
    write_vocabulary(storage, encode_vocabulary(TOKENS))
    with pytest.raises(RunError, match="another vocabulary"):
        write_vocabulary(storage, encode_vocabulary(TOKENS[:-1]))


def test_missing_vocabulary_is_an_error_with_advice(tmp_path):
    with pytest.raises(RunError, match=r"vocabulary\.json is missing.*Run the same job again"):
        read_vocabulary(Storage(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'["a"', b"[" * 100_000, b"\xff"])
def test_other_content_is_not_a_vocabulary(tmp_path, content):
    storage = Storage(str(tmp_path))
    storage.create(VOCABULARY_NAME, content)
    with pytest.raises(RunError, match="expected a JSON array of strings"):
        read_vocabulary(storage)


def test_tokens_are_listed_by_id_whatever_the_number_of_the_models_ids():
    found = {"b": 1, "a": 0, "added": 4, "c": 2}
    assert list_tokens(found, 3) == ["a", "b", "c"]
    assert list_tokens(found, 6) == ["a", "b", "c", "", "added", ""]
