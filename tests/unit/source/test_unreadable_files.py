"""Files that cannot be read end in one message, with advice that fits; no file fills the memory or stops the reader."""

import base64
import bz2
import gzip
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from varve.config.source import Source
from varve.errors import JobError, RunError
from varve.source import bounded_lines
from varve.source.error_messages import describe_error
from varve.source.open_dataset import open_dataset

NETWORK = "Check the address"
CSV = b"text,number\n" + b"a,1\n" * 100_000


def open_file(path, kind: str | None = None, **source):
    kind = kind or path.name.split(".")[1]
    return open_dataset(Source(dataset=kind, data_files=str(path), text="text", **source))


def refusal(path, kind: str | None = None, **source) -> str:
    """The message of a source that cannot be opened or read."""
    with pytest.raises((JobError, RunError)) as raised:
        list(open_file(path, kind, **source).read(0))
    message = str(raised.value)
    assert "\n" not in message
    return message


UNREADABLE = [
    ("empty.parquet", b"", "0 bytes"),
    ("text.parquet", b"words, not Parquet", "not a parquet file"),
    ("thrift.parquet", b"PAR1" + b"\x15" * 200 + (200).to_bytes(4, "little") + b"PAR1", "Couldn't deserialize thrift"),
    ("long_footer.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "smaller than the size reported by footer"),
    ("cut.csv.gz", gzip.compress(CSV, mtime=0)[:200], "Compressed file ended before"),
    ("cut.csv.bz2", bz2.compress(CSV)[:50], "Compressed file ended before"),
    ("text.csv.gz", b"words, not gzip", "Not a gzipped file"),
    ("damaged.json.gz", gzip.compress(CSV, mtime=0)[:10] + b"\xff" * 30, "Error -3 while decompressing"),
    ("text.json", b"<html>", "JSONDecodeError: Expecting value"),
    ("numbers.json", b"1\n2\n", "a row is not a JSON object"),
    ("empty.json", b" \n", "holds no rows"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
def test_damaged_file_is_named_without_advice_on_the_network(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused = refusal(tmp_path / name)
    assert name in refused
    assert message in refused
    assert NETWORK not in refused


@pytest.mark.parametrize("content", [b'{"other": []}', b'{"rows": 1}', b'["rows"]', b""])
def test_json_without_the_field_is_refused_with_the_key(tmp_path, content):
    (tmp_path / "0.json").write_bytes(content)
    refused = refusal(tmp_path / "0.json", options={"field": "rows"})
    assert "no list below the key 'rows', which source.options.field names" in refused


class Keys(pe.KmsClient):
    """Keys that are stored next to what they encrypt."""

    def wrap_key(self, key_bytes, _identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, _identifier):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_parquet_is_refused_as_that(tmp_path, plaintext_footer):
    encryption = pe.EncryptionConfiguration("footer", column_keys={"k": ["text"]}, plaintext_footer=plaintext_footer)
    keys = pe.CryptoFactory(lambda _: Keys()).file_encryption_properties(pe.KmsConnectionConfig(), encryption)
    table = pa.table({"text": ["a"], "number": [1]})
    with pq.ParquetWriter(tmp_path / "0.parquet", table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    refused = refusal(tmp_path / "0.parquet")
    assert "the file is encrypted, which Varve cannot read. Write it without encryption" in refused
    assert NETWORK not in refused


def test_encrypted_file_of_a_lake_table_is_described_as_that():
    error = RunError("delta/0.parquet cannot be read: OSError Could not read encrypted metadata, no decryption found")
    described = describe_error(error)
    assert described == (
        "delta/0.parquet cannot be read: the file is encrypted, which Varve cannot read. Write it without encryption"
    )


def test_file_without_rights_is_refused_with_advice_on_rights(tmp_path, monkeypatch):
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))  # which root never gets

    monkeypatch.setattr("varve.source.file_metadata.open_file", refuse)
    refused = refusal(path)
    assert "Permission denied" in refused
    assert "Check that the user who runs this may read it" in refused


def test_source_with_configurations_is_refused_with_the_key(tmp_path):
    names = "- {config_name: a, data_files: a.csv}\n- {config_name: b, data_files: a.csv}\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    (tmp_path / "a.csv").write_bytes(CSV)
    with pytest.raises(JobError, match=r"\['a', 'b'\]\. Set source\.name to one of them$"):
        open_dataset(Source(dataset=str(tmp_path), text="text"))
    with pytest.raises(JobError, match=r"no configuration 'c'\. Set source\.name to one of \['a', 'b'\]$"):
        open_dataset(Source(dataset=str(tmp_path), name="c", text="text"))
    assert open_dataset(Source(dataset=str(tmp_path), name="a", text="text")).num_shards == 1


def test_dataset_script_is_not_run_and_the_message_has_a_way(tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(JobError, match=r"found script\.py\. Name the data files: source\.dataset: parquet") as raised:
        open_dataset(Source(dataset=str(folder), text="text"))
    assert NETWORK not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["0.csv", "0.csv.gz", "0.json", "0.json.gz"])
@pytest.mark.parametrize("start", [0, 200_000])  # rows before the long line
def test_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, name, start):
    monkeypatch.setattr(bounded_lines, "MAX_LINE_BYTES", 1 << 20)
    row, quote = (b'{"text": "a"}\n', b'{"text": "') if "json" in name else (b"a\n", b'"')
    header = b"" if "json" in name else b"text\n"
    content = header + row * start + quote + b"a" * (1 << 22)
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    assert "more than 1 GiB without the end of a row" in refusal(tmp_path / name, options={"chunksize": 1000})


@pytest.mark.parametrize("start", [b'[{"text": "a"}', b'{"text": "a", "other": [0', b'{"text": [0'])
def test_json_of_many_small_values_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, start):
    monkeypatch.setattr(bounded_lines, "MAX_VALUES", 100_000)
    end = b"]}" if start.startswith(b"{") else b"]"
    (tmp_path / "0.json.gz").write_bytes(gzip.compress(start + b",{}" * 100_001 + end))
    assert "more than 100,000 values without the end of a row" in refusal(tmp_path / "0.json.gz")


def test_rows_of_any_length_are_read_in_tables_of_bounded_size(tmp_path):
    texts = ["a" * 10] * 3000 + ["b" * 400_000] * 200 + ["c"] * 3000
    (tmp_path / "0.csv").write_text("text\n" + "\n".join(texts))
    dataset = open_file(tmp_path / "0.csv")
    tables = list(dataset.reader.read(0, 0))
    assert [text for table in tables for text in table["text"].to_pylist()] == texts
    assert max(table.nbytes for table in tables) < 120_000_000


def test_members_of_an_archive_stay_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for name in ("a#1 ü.csv", "../outside.csv"):
            archive.writestr(name, f"text,number\n{name},1\n")
    tables = list(open_file(tmp_path / "0.zip", "csv").read(0))
    assert "a#1 ü.csv" in tables[0]["text"].to_pylist()
    assert list(tmp_path.iterdir()) == [tmp_path / "0.zip"]


@pytest.mark.parametrize("environment", [{"HF_HOME": "/sys/varve"}, {"HOME": "/sys"}])
def test_cache_that_cannot_be_written_is_named_with_its_variable(environment, tmp_path):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "0.parquet")
    source = f"Source(dataset='parquet', data_files={str(tmp_path / '0.parquet')!r}, text='text')"
    code = (
        "from varve.config.source import Source\nfrom varve.errors import JobError\n"
        "from varve.source.open_dataset import open_dataset\n"
        f"try: open_dataset({source})\nexcept JobError as e: print(e)\n"
    )
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))} | environment
    result = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=True)
    assert "Set HF_HOME to a folder that can be written" in result.stdout
