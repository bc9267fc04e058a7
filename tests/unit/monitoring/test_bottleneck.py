import pytest

from varve.monitoring.bottleneck import STAGES, bottleneck, measure


def stages_of(**seconds):
    return measure(seconds, ready_s=10.0, last_s=110.0, lanes=4, replicas=2)


def test_encoder_that_is_always_busy_is_the_bottleneck():
    stages = stages_of(read=5.0, tokenize=22.0, encode=396.0, write=11.0)
    assert [stage.busy for stage in stages.values()] == [0.05, 0.11, 0.99, 0.11]
    assert bottleneck(stages).startswith("encode, 99%")


@pytest.mark.parametrize("name", STAGES)
def test_busiest_stage_is_named_with_advice(name):
    stage, _, advice = bottleneck(stages_of(**{name: 1000.0})).partition(", 100% busy: ")
    assert stage == name
    assert len(advice.split()) > 5


def test_stages_with_little_work_are_no_bottleneck():
    assert bottleneck(stages_of(encode=100.0)).startswith("none")


def test_work_before_the_first_replica_is_ready_counts_as_work_only():
    seconds, before_s = {"tokenize": 500.0, "encode": 360.0}, {"tokenize": 400.0}
    stages = measure(seconds, 10.0, 110.0, lanes=4, replicas=2, before_s=before_s)
    assert (stages["tokenize"].busy, stages["tokenize"].work_s) == (0.5, 500.0)
    assert bottleneck(stages).startswith("encode, 90%")


def test_run_without_work_has_idle_stages():
    stages = measure({}, ready_s=0.0, last_s=0.0, lanes=1, replicas=1)
    assert all(stage.busy == 0 for stage in stages.values())


def test_run_of_a_few_rows_has_no_bottleneck():
    assert bottleneck(measure({"encode": 0.03}, 5.0, 5.03, lanes=1, replicas=1)).startswith("none")
