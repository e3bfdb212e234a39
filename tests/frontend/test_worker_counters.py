"""Counters of workers as several brokers tell them."""

from samples.wire import identifier, worker_report

from frontend.worker_counters import WorkerCounters


def test_a_broker_that_lags_behind_takes_nothing_back():
    counters = WorkerCounters()
    assert counters.of(worker_report(engine_restarts=3, prompt_cache_hits=7)) == (3, 0, 7, 0)
    assert counters.of(worker_report(engine_restarts=2, prompt_cache_hits=8)) == (3, 0, 8, 0)


def test_another_life_begins_at_nought():
    counters = WorkerCounters()
    counters.of(worker_report(engine_restarts=3))
    again = worker_report(engine_restarts=1, incarnation=identifier("worker 2"))
    assert counters.of(again).engine_restarts == 1


def test_who_is_gone_is_forgotten():
    counters = WorkerCounters()
    counters.of(worker_report("a", engine_restarts=3))
    counters.of(worker_report("b", engine_restarts=3))
    counters.forget_all_but({"b"})
    assert counters.of(worker_report("a", engine_restarts=1)).engine_restarts == 1
    assert counters.of(worker_report("b", engine_restarts=1)).engine_restarts == 3
