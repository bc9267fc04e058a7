"""The sentences of a report: which facts they state."""

from dataclasses import replace

from tests.example_reports import example_history, example_manifest, example_report
from varve.exploration.findings import findings, headline
from varve.exploration.run_times import measure_run


def sentences(report) -> str:
    run = measure_run(report.histories, report.manifest.stages)
    return "\n".join([headline(report, run), *findings(report, run)])


def test_headline_states_rows_tokens_failures_and_the_canary():
    text = sentences(example_report())
    for figure in ("1,000 rows", "52,000 tokens", "950 rows with features", "50 failed", "16 rows", "2.0e-06"):
        assert figure in text


def test_findings_of_a_job_killed_twice_with_a_slow_half_state_all_of_it():
    histories = (
        example_history(outcome="running", seconds=30),
        example_history(outcome="running", seconds=30, started_at=1_790_000_100.0),
        example_history(seconds=120, slow_from_s=5.0, started_at=1_790_003_730.0),
    )
    text = sentences(example_report(histories=histories))
    assert "in 3 attempts" in text
    assert "Attempt 1" in text
    assert "Attempt 2" in text
    assert text.count("was killed") == 2
    assert "1:00:00 later" in text
    assert "times slower" in text
    assert "50 rows (5.0%) failed" in text


def test_findings_of_a_killed_last_attempt_state_that_a_later_command_published():
    text = sentences(example_report(histories=(example_history(outcome="running"),)))
    assert "was killed" in text
    assert "Later commands encoded nothing" in text


def test_findings_state_a_slow_replica_by_its_node():
    history = example_history(seconds=60)
    slow = tuple(replace(each, tokens=each.tokens // 4) if each.replica == 1 else each for each in history.parts)
    assert "10.0.0.2" in sentences(example_report(histories=(replace(history, parts=slow),)))


def test_findings_state_texts_that_were_cut_only_if_they_are_many():
    report = example_report()
    assert "cut at 128 tokens" in sentences(report)
    assert "cut at 128 tokens" not in sentences(replace(report, texts=replace(report.texts, num_truncated=10)))


def test_findings_name_the_features_whose_random_pairs_are_similar():
    text = sentences(example_report())
    assert "cls_06 0.60" in text
    assert "cls_01 0.10" not in text


def test_cost_is_that_of_all_attempts_without_pauses():
    histories = (example_history(outcome="stopped"), example_history(started_at=1_799_000_000.0))
    assert "cost 4.00" in sentences(example_report(histories=histories, price_per_hour=120.0))


def test_report_of_a_run_without_history_says_so():
    assert "Nothing is recorded" in sentences(example_report(histories=()))


def test_canary_without_rows_is_stated():
    report = example_report(manifest=example_manifest(canary={"rows": 0, "features": {}}))
    assert "No row was compared" in sentences(report)


def test_feature_of_equal_vectors_is_stated_once():
    report = example_report()
    first = replace(report.vectors[0], effective_rank=0.0, anisotropy=1.0)
    text = sentences(replace(report, vectors=(first, *report.vectors[1:])))
    assert "equal in: cls_00" in text
    assert "cls_00 1.00" not in text
    assert "cls_00 0 of" not in text
