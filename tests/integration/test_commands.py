"""The commands as users run them: exit codes, one clear error message, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.cli.main import COMMANDS, run_command


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """A source that no test changes."""
    folder = tmp_path_factory.mktemp("commands") / "docs"
    folder.mkdir()
    table = pa.table({"text": [f"text {row}" for row in range(60)], "number": range(60)})
    pq.write_table(table, folder / "0.parquet")
    return folder


def options(**values: str) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", value)]


@pytest.fixture
def arguments(docs, tiny, tmp_path):
    def make(**changes: str) -> list[str]:
        values = {"dataset": str(docs), "text": "text", "model": tiny("bert"), "output": str(tmp_path / "out")}
        return options(**(values | changes))

    return make


@pytest.fixture(scope="module")
def made(docs, tiny):
    """A finished output of `varve embed`."""
    output = docs.parent / "made"
    argv = options(dataset=str(docs), text="text", model=tiny("bert"), output=str(output))
    assert run_command(["embed", *argv, "--set", "output.rows_per_part=20"]) == 0
    return output


@pytest.fixture
def finished(made, tmp_path):
    """A copy of a finished output, for tests that damage it."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def test_commands_are_listed_with_their_descriptions(capsys):
    assert run_command(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"varve {name}" in usage and what in usage for name, what in COMMANDS.items())


@pytest.mark.parametrize("argv", [[], ["embd"], ["embed"], ["embed", "--dataset", "x"]])
def test_wrong_command_exits_with_2(argv, capsys):
    assert run_command(argv) == 2
    assert "varve" in capsys.readouterr().err


def test_plan_refuses_installed_without_an_address(arguments, capsys):
    assert run_command(["plan", *arguments(), "--installed"]) == 2
    assert "--installed needs --to" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_plan_refuses_an_invalid_price_in_one_line(price, arguments, capsys):
    assert run_command(["plan", *arguments(), f"--price-per-hour={price}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"varve plan: --price-per-hour: {price} ")
    assert len(error.splitlines()) == 1


STOPPED_EARLY = """
import os, signal, sys
from varve.cli.main import main

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "varve.cli.status":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["varve", "status", "."]
sys.meta_path.insert(0, Stop())
main()
"""


def test_ctrl_c_during_the_import_of_a_command_is_reported_in_one_line():
    done = subprocess.run([sys.executable, "-c", STOPPED_EARLY], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("varve: stopped")


def test_schema_is_one_json_document(capsys):
    assert run_command(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Job"


@pytest.mark.parametrize(
    ("extra", "fragment"),
    [
        (["--set", "model.max_token=3"], "model.max_token: unknown key"),
        (["--set", "output.dtype=3"], "output.dtype: 3 is not allowed"),
        (["--set", "source.text=body"], "'body'"),
        (["--set", "source.text=number"], "'number' holds int64"),
        (["--set", "source.keep=[nothing]"], "'nothing'"),
        (["--feature", "e=mean@13"], "layer 13"),
        (["--feature", "e=average"], '"average"'),
        (["--feature", "e=mean", "--feature", "e=cls"], "--feature e was given twice"),
        (["--max-tokens", "131"], "131"),
        (["--set", "source.dataset=./nowhere"], "./nowhere"),
        (["--set", "model.name=./nowhere"], "./nowhere"),
        (["--set", "source.split=test"], "'test'"),
        (["--set", "output.path=file://here/out"], "output.path: file://here/out"),
        (["--set", "output.path=~nobody-of-this-name/out"], "~nobody-of-this-name"),
        (["--set", "source.dataset=parquet", "--data-files", "/nowhere/*.parquet"], "/nowhere/*.parquet"),
    ],
)
def test_wrong_job_exits_with_2_and_writes_nothing(extra, fragment, arguments, tmp_path, capsys):
    assert run_command(["embed", *arguments(), *extra]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["embed", "plan"])
def test_model_that_cannot_be_encoded_exactly_exits_with_2(command, arguments, tiny, capsys):
    assert run_command([command, *arguments(model=tiny("convbert"))]) == 2
    assert f"\nvarve {command}: model: ConvBertModel cannot be encoded exactly" in f"\n{capsys.readouterr().err}"


@pytest.mark.parametrize(("scheme", "below"), [("", ""), ("", "/out"), ("file://", "/out")])
def test_output_that_is_a_file_exits_with_2_and_is_not_changed(scheme, below, arguments, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("notes")
    assert run_command(["embed", *arguments(output=f"{scheme}{file}{below}")]) == 2
    assert f"output.path: {file} is a file" in capsys.readouterr().err
    assert file.read_text() == "notes"


@pytest.mark.parametrize("output", ["docs/features", "docs", "."])
def test_output_that_the_source_would_read_is_refused(output, docs, arguments, tmp_path, capsys):
    folder = tmp_path / ("data" if output == "." else "docs")
    shutil.copytree(docs, folder)
    before = sorted(folder.rglob("*"))
    assert run_command(["embed", *arguments(dataset=str(folder), output=str(tmp_path / output))]) == 2
    message = capsys.readouterr().err
    assert "output.path" in message
    assert f"{folder}/**" in message
    assert sorted(folder.rglob("*")) == before


def test_unreadable_file_exits_with_2(arguments, tmp_path, capsys):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/0.parquet").write_bytes(b"PAR1 but not really")
    assert run_command(["embed", *arguments(dataset=str(tmp_path / "torn"))]) == 2
    error = capsys.readouterr().err
    assert "0.parquet" in error or "torn" in error
    assert "Traceback" not in error


def test_error_under_json_is_one_document(arguments, capsys):
    assert run_command(["embed", *arguments(dataset="./nowhere"), "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["exit_code"] == 2
    assert "./nowhere" in result["error"]


def test_output_of_another_job_exits_with_2_and_is_not_changed(finished, arguments, capsys):
    before = sorted(path.name for path in finished.rglob("*"))
    assert run_command(["embed", *arguments(), "--set", "output.rows_per_part=20", "--feature", "e=cls"]) == 2
    assert 'features.e.pool: absent → "cls"' in capsys.readouterr().err
    assert sorted(path.name for path in finished.rglob("*")) == before


def test_status_of_absent_partial_and_complete_outputs(finished, tmp_path, capsys):
    assert run_command(["status", str(tmp_path / "nowhere")]) == 1
    assert "Absent" in capsys.readouterr().out
    assert run_command(["status", str(finished), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["state"], whole["rows"], whole["parts"]) == ("complete", 60, 4)
    (finished / "_varve/manifest.json").unlink()
    (finished / "data/part-00000-000000000020-000000000040.parquet").unlink()
    (finished / "data/part-00000-000000000060-000000000060.parquet").unlink()
    assert run_command(["status", str(finished), "--json"]) == 1
    part = json.loads(capsys.readouterr().out)
    assert part["missing"] == [{"shard": 0, "rows": [20, 40]}, {"shard": 0, "rows": [60, None]}]


def test_verify_passes_a_finished_output(finished, capsys):
    assert run_command(["verify", str(finished), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(check["passed"] and not check["skipped"] for check in report["checks"])


@pytest.mark.parametrize("damage", ["a byte", "a footer", "a part", "half a part", "a strange part"])
def test_verify_names_what_is_damaged(damage, finished, capsys):
    part = finished / "data/part-00000-000000000020-000000000040.parquet"
    content = part.read_bytes()
    match damage:
        case "a byte":
            part.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "a footer":
            part.write_bytes(content.replace(b'"pool": "mean"', b'"pool": "maxx"'))
        case "a part":
            part.unlink()
        case "half a part":
            part.write_bytes(content[: len(content) // 2])
        case "a strange part":
            shutil.copy(part, finished / "data/part-00007-000000000020-000000000040.parquet")
    assert run_command(["verify", str(finished)]) == 1
    report = capsys.readouterr().out
    assert "FAILED" in report
    assert ("shard 7" if damage == "a strange part" else "part-00000-000000000020") in report


def test_verify_on_ray_finds_the_same_failures(finished):
    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute
    from varve.engine.ray_tasks import spread
    from varve.verification.verify import verify

    part = finished / "data/part-00000-000000000020-000000000040.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    start_ray(Compute())
    here, spread_out = verify(str(finished), deep=True), verify(str(finished), deep=True, spread=spread)
    assert here == spread_out
    assert next(check.name for check in here if not check.passed) == "checksums"


def test_deep_verify_counts_the_source_again(finished, capsys):
    assert run_command(["verify", str(finished), "--deep"]) == 0
    assert "ok       source" in capsys.readouterr().out
    recorded = finished / "_varve/manifest.json"
    content = json.loads(recorded.read_text())
    content["parts"][-2]["stop"] -= 5  # as if the last rows had been forgotten
    recorded.write_text(json.dumps(content))
    assert run_command(["verify", str(finished), "--deep", "--json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert any("60 rows" in failure for failure in checks["source"]["failures"])


def test_clean_lists_files_and_deletes_only_with_delete(finished, capsys):
    staged = finished / "data/part-00000-000000000000-000000000020.parquet#3"
    staged.write_bytes(b"half")
    os.utime(staged, (0, 0))
    fresh = finished / "data/part-00000-000000000000-000000000020.parquet#4"
    fresh.write_bytes(b"half")
    (finished / "data/notes.txt").write_text("mine")
    (finished / "Invoice #12").write_text("mine")
    os.utime(finished / "Invoice #12", (0, 0))
    parts = sorted(path.name for path in (finished / "data").glob("*.parquet"))
    assert run_command(["clean", str(finished)]) == 0
    listed = capsys.readouterr().out
    assert "parquet#3" in listed
    assert "parquet#4" not in listed
    assert "notes.txt" in listed
    assert staged.exists()
    assert run_command(["clean", str(finished), "--delete"]) == 0
    assert not staged.exists()
    assert fresh.exists()
    assert (finished / "Invoice #12").exists()
    assert sorted(path.name for path in (finished / "data").glob("*.parquet")) == parts
    assert run_command(["clean", str(finished.parent)]) == 2


def test_verify_without_an_output_exits_with_2(tmp_path, capsys):
    assert run_command(["verify", str(tmp_path)]) == 2
    assert "holds no output of Varve" in capsys.readouterr().err


def test_plan_counts_and_writes_nothing(arguments, tmp_path, capsys):
    assert run_command(["plan", *arguments(), "--feature", "e=mean@1", "--feature", "t=tokens@2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_rows"], figures["rows_known"]) == (60, True)
    assert (figures["layers_run"], figures["num_layers"]) == (2, 3)
    assert figures["row_bytes"]["e"] == 128
    assert sum(rows for *_, rows in figures["length_histogram"]) == 60
    assert figures["tokens_per_s"] > 0
    assert not (tmp_path / "out").exists()
    assert run_command(["plan", *arguments()]) == 0
    assert "tokens/s per replica" in capsys.readouterr().out


def test_plan_counts_the_highest_layer_once_for_a_text_where_only_cls_is_wanted(arguments, capsys):
    figures = {}
    for pool in ("mean", "cls"):
        assert run_command(["plan", *arguments(), "--feature", f"e={pool}@2", "--json"]) == 0
        figures[pool] = json.loads(capsys.readouterr().out)
    # Of the layer's 24 h^2 for each token 18 h^2 are left out, but for one token in each text.
    mean, cls = figures["mean"], figures["cls"]
    hidden = cls["row_bytes"]["e"] / 4
    left_out = (cls["num_tokens"] - cls["num_rows"]) * 18 * hidden**2
    assert cls["encoder"]["top_layer"] == "first tokens"
    assert mean["flops"] - cls["flops"] == pytest.approx(left_out, rel=0.02)


def test_plan_estimates_rows_of_formats_that_do_not_count_them(arguments, tmp_path, capsys):
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/0.txt").write_text("".join(f"line number {row}\n" for row in range(20_000)))
    assert run_command(["plan", *arguments(dataset=str(tmp_path / "lines")), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert not figures["rows_known"]
    assert 10_000 < figures["num_rows"] < 40_000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_full_disk_exits_with_1_and_leaves_no_half_part(arguments, tmp_path, minilm, capfd):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], check=True)
    try:
        argv = arguments(output=str(small / "out"), model=minilm)
        assert run_command(["embed", *argv, "--set", "output.rows_per_part=30"]) == 1
        error = capfd.readouterr().err
        assert "No space left on device" in error
        assert "Traceback" not in error
        for part in (small / "out/data").glob("*.parquet"):
            first, stop = (int(number) for number in part.stem.split("-")[2:])
            assert pq.read_table(part).num_rows == stop - first
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def declaring(tiny, tmp_path) -> str:
    """A checkpoint that declares the vector of the first token."""
    model = tmp_path / "model"
    shutil.copytree(tiny("bert"), model)
    (model / "1_Pooling").mkdir()
    (model / "modules.json").write_text(
        json.dumps([{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}])
    )
    (model / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return str(model)


def test_plan_notes_that_no_feature_is_the_declared_vector(arguments, declaring, capsys):
    assert run_command(["plan", *arguments(model=declaring, feature="e=mean"), "--json"]) == 0
    captured = capsys.readouterr()
    (note,) = json.loads(captured.out)["notes"]
    assert captured.err == f"{note}\n"
    assert f"{declaring} declares another vector: cls; " in note


def test_plan_describes_the_declared_vector(arguments, declaring, capsys):
    assert run_command(["plan", *arguments(model=declaring, prompt="query: ")]) == 0
    captured = capsys.readouterr()
    assert "embedding: cls; prompt 'query: '; " in captured.out
    assert not captured.err


def test_embed_refuses_what_the_checkpoint_declares_and_varve_cannot_compute(arguments, declaring, tmp_path, capsys):
    Path(declaring, "modules.json").write_text(json.dumps([{"type": "a.Transformer"}, {"type": "a.CNN", "path": "1"}]))
    assert run_command(["embed", *arguments(model=declaring)]) == 2
    assert "a.CNN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_embed_refuses_a_role_that_the_checkpoint_does_not_define(arguments, declaring, tmp_path, capsys):
    assert run_command(["embed", *arguments(model=declaring, role="query")]) == 2
    error = capsys.readouterr().err
    assert "model.role: query is not defined" in error
    assert 'model.prompt: "query: "' in error
    assert not (tmp_path / "out").exists()
