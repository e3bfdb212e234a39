"""The three cores together when nothing goes wrong, or one thing at a time."""

import pytest
from simulation.clock import Clock
from simulation.engine import HAUNTED, HUNGRY, POISON, Temper
from simulation.frontend_actor import FrontendActor
from simulation.worker_actor import WorkerActor
from simulation.world import World

from frontend.actions import ImageDelivered, JobGivenUp, JobRefused
from gpu_worker.slot import Free
from proto.failures import FailureCode, RefusalReason
from proto.messages import Outcome


@pytest.fixture
def world() -> World:
    """Its broker's rebuild window is over."""
    return World()


@pytest.fixture
def frontend(world: World) -> FrontendActor:
    frontend = world.add_frontend("frontend")
    world.run_for(world.timing.rebuild_s + 0.5)
    return frontend


@pytest.fixture
def worker(world: World, frontend: FrontendActor) -> WorkerActor:
    """A worker that is ready, as its frontend knows."""
    return with_worker(world, frontend, "worker", 1)


@pytest.fixture
def other(world: World, frontend: FrontendActor, worker: WorkerActor) -> WorkerActor:
    return with_worker(world, frontend, "other", 2)


def with_worker(world: World, frontend: FrontendActor, name: str, count: int) -> WorkerActor:
    worker = world.add_worker(name)
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == count, 3.0)
    return worker


def executions(world: World) -> int:
    return world.stats.executions


def until_over(world: World, call, limit_s: float = 10.0):
    world.run_until(lambda: not call.is_open, limit_s)
    return call.end


def until_running(world: World, worker: WorkerActor) -> None:
    world.run_until(lambda: worker.running is not None, 1.0)


# --- One call after the other --------------------------------------------------------------------


def test_a_job_comes_back_as_its_image(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", seed=7)
    assert isinstance(until_over(world, call), ImageDelivered)
    assert executions(world) == 1


def test_after_an_image_nothing_is_left_behind(world, frontend, worker):
    until_over(world, world.ask(frontend, "key", "a cat"))
    world.run_for(2.5)
    assert len(world.broker.core.state.jobs) == 0
    assert len(worker.session.held) == 0


def test_no_worker_is_said_at_once(world, frontend):
    call = world.ask(frontend, "key", "a cat")
    end = until_over(world, call, 0.1)
    assert isinstance(end, JobRefused)
    assert (end.reason, end.retry_after_s) == (RefusalReason.NO_WORKERS, None)


def test_a_young_broker_waits_for_workers_to_report(world):
    frontend = world.add_frontend("frontend")
    call = world.ask(frontend, "key", "a cat")
    world.run_for(world.timing.rebuild_s - 0.5)
    assert call.is_open
    assert call.accepted_at is None
    assert isinstance(until_over(world, call, 1.0), JobRefused)


def test_a_loading_worker_is_said_at_once(world, frontend):
    world.temper = Temper(load_s=(5.0, 5.0))
    world.add_worker("worker")
    world.run_for(0.1)
    end = until_over(world, world.ask(frontend, "key", "a cat"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.WORKERS_NOT_READY
    assert end.retry_after_s is not None


def test_a_second_call_of_the_same_key_is_refused(world, frontend, worker):
    first = world.ask(frontend, "key", "a cat", steps=20)
    until_running(world, worker)
    end = until_over(world, world.ask(frontend, "key", "a dog"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.CLIENT_BUSY
    assert end.retry_after_s is not None
    assert isinstance(until_over(world, first), ImageDelivered)


def test_another_key_is_refused_while_the_only_worker_is_busy(world, frontend, worker):
    world.ask(frontend, "key", "a cat", steps=20)
    until_running(world, worker)
    end = until_over(world, world.ask(frontend, "other", "a dog"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.ALL_WORKERS_BUSY


def test_the_retry_delay_is_what_the_running_job_still_needs(world, frontend, worker):
    world.ask(frontend, "key", "a cat", steps=20)  # 20 steps of 0.25 s
    until_running(world, worker)
    world.run_for(3.0)
    end = until_over(world, world.ask(frontend, "other", "a dog"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.retry_after_s == pytest.approx(2.5, abs=1.0)


def test_a_queue_takes_what_its_limit_allows(world, frontend, worker):
    world.broker.core.state.queue_limit = 1
    first, second, third = (world.ask(frontend, f"key {n}", f"{n}", steps=8) for n in range(3))
    assert isinstance(until_over(world, third, 0.1), JobRefused)
    assert isinstance(until_over(world, second), ImageDelivered)
    assert isinstance(first.end, ImageDelivered)


def test_a_deadline_that_cannot_be_met_is_refused(world, frontend, worker):
    for n in range(3):
        until_over(world, world.ask(frontend, "key", f"cat {n}", steps=20))
    end = until_over(world, world.ask(frontend, "key", "a dog", steps=20, deadline_s=1.0), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.DEADLINE_TOO_SHORT


def test_a_client_that_leaves_stops_the_worker_at_the_next_step(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=20)
    until_running(world, worker)
    frontend.leave(call)
    world.run_until(lambda: isinstance(worker.session.slot, Free), 0.25 + 0.1)
    assert isinstance(until_over(world, world.ask(frontend, "other", "a dog")), ImageDelivered)


def test_a_deadline_stops_the_worker(world, frontend, worker):
    end = until_over(world, world.ask(frontend, "key", "a cat", steps=20, deadline_s=1.0), 1.1)
    assert isinstance(end, JobGivenUp)
    assert end.code is FailureCode.DEADLINE_EXCEEDED
    world.run_until(lambda: isinstance(worker.session.slot, Free), 0.25 + 0.1)


def test_a_call_that_follows_a_cancelled_one_of_its_key_is_taken(world, frontend, worker, other):
    first = world.ask(frontend, "key", "a cat", steps=20)
    world.run_until(lambda: worker.running is not None or other.running is not None, 1.0)
    frontend.leave(first)
    assert isinstance(until_over(world, world.ask(frontend, "key", "a dog")), ImageDelivered)


def test_a_thousand_calls_at_once_cost_few_reports(world, frontend, worker):
    before = frontend.reports
    calls = [world.ask(frontend, f"key {n}", f"{n}") for n in range(1000)]
    world.run_until(lambda: not any(call.is_open for call in calls), 5.0)
    assert sum(call.ending() == "image" for call in calls) == 1
    assert frontend.reports - before < 20


# --- Repeats ---------------------------------------------------------------------------------------


def test_a_repeat_after_success_gets_the_same_image_without_a_second_execution(world, frontend, worker):
    first = until_over(world, world.ask(frontend, "key", "a cat", repeats="r"))
    world.run_for(30.0)
    again = world.add_frontend("elsewhere")
    world.run_for(1.0)
    second = until_over(world, world.ask(again, "key", "a cat", repeats="r"))
    assert isinstance(first, ImageDelivered)
    assert isinstance(second, ImageDelivered)
    assert second.png == first.png
    assert executions(world) == 1


def test_a_repeat_finds_the_image_also_after_restarts_of_broker_and_frontend(world, frontend, worker):
    first = until_over(world, world.ask(frontend, "key", "a cat", repeats="r"))
    world.run_for(2.0)
    frontend.kill()
    world.restart_broker()
    world.run_for(1.0)
    second = until_over(world, world.ask(world.add_frontend("younger"), "key", "a cat", repeats="r"))
    assert isinstance(first, ImageDelivered)
    assert isinstance(second, ImageDelivered)
    assert second.png == first.png


def test_a_repeat_joins_the_running_job(world, frontend, worker):
    first = world.ask(frontend, "key", "a cat", steps=12, repeats="r")
    until_running(world, worker)
    second = world.ask(frontend, "key", "a cat", steps=12, repeats="r")
    assert isinstance(until_over(world, second), ImageDelivered)
    assert isinstance(first.end, ImageDelivered)
    assert executions(world) == 1


def test_when_the_first_of_two_leaves_the_job_goes_on(world, frontend, worker):
    first = world.ask(frontend, "key", "a cat", steps=12, repeats="r")
    until_running(world, worker)
    second = world.ask(frontend, "key", "a cat", steps=12, repeats="r")
    world.run_for(0.5)
    frontend.leave(first)
    assert isinstance(until_over(world, second), ImageDelivered)
    assert executions(world) == 1


def test_when_the_last_leaves_the_job_is_stopped(world, frontend, worker):
    calls = [world.ask(frontend, "key", "a cat", steps=20, repeats="r") for _ in range(2)]
    until_running(world, worker)
    for call in calls:
        frontend.leave(call)
    world.run_until(lambda: isinstance(worker.session.slot, Free), 0.5)


def test_a_repeat_with_other_parameters_is_refused(world, frontend, worker):
    first = world.ask(frontend, "key", "a cat", steps=12, repeats="r")
    until_running(world, worker)
    end = until_over(world, world.ask(frontend, "key", "a dog", steps=12, repeats="r"), 0.1)
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.IDEMPOTENCY_MISMATCH
    assert isinstance(until_over(world, first), ImageDelivered)


def test_a_detached_job_goes_on_and_a_later_repeat_gets_its_image(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=8, repeats="r", detach=True)
    until_running(world, worker)
    frontend.leave(call)
    world.run_for(10.0)
    assert isinstance(
        until_over(world, world.ask(frontend, "key", "a cat", steps=8, repeats="r")), ImageDelivered
    )
    assert executions(world) == 1


def test_a_repeat_through_another_frontend_finds_the_job_of_a_dead_one(world, frontend, worker):
    world.ask(frontend, "key", "a cat", steps=40, repeats="r")
    until_running(world, worker)
    frontend.kill()
    world.run_for(6.0)
    again = world.ask(world.add_frontend("younger"), "key", "a cat", steps=40, repeats="r")
    assert isinstance(until_over(world, again), ImageDelivered)
    assert executions(world) == 1


# --- Engines ---------------------------------------------------------------------------------------


def test_a_killed_engine_is_replaced_and_the_job_runs_again_elsewhere(world, frontend, worker, other):
    call = world.ask(frontend, "key", "a cat")
    world.run_until(lambda: worker.running is not None or other.running is not None, 1.0)
    (worker if worker.running else other).crash_engine()
    assert isinstance(until_over(world, call), ImageDelivered)
    assert (worker.runs, other.runs) == (1, 1)
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 2, 2.0)


def test_a_job_that_kills_two_engines_is_poison(world, frontend, worker, other):
    third = with_worker(world, frontend, "third", 3)
    end = until_over(world, world.ask(frontend, "key", POISON), 20.0)
    assert isinstance(end, JobGivenUp)
    assert end.code is FailureCode.POISON_JOB
    assert sorted((worker.runs, other.runs, third.runs)) == [0, 1, 1]


def test_a_job_without_memory_is_tried_three_times(world, frontend, worker, other):
    end = until_over(world, world.ask(frontend, "key", HUNGRY), 20.0)
    assert isinstance(end, JobGivenUp)
    assert end.code is FailureCode.OUT_OF_MEMORY
    assert end.attempts == executions(world) == 3


def test_a_hung_engine_is_killed_and_the_job_is_given_to_another(world, frontend, worker, other):
    end = until_over(world, world.ask(frontend, "key", HAUNTED), 40.0)
    assert isinstance(end, JobGivenUp)
    assert end.code is FailureCode.POISON_JOB
    assert executions(world) == 2


# --- Workers ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_noticed_in_time_and_the_call_ends(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=20)
    until_running(world, worker)
    worker.kill()
    killed_at, timing = world.now, world.timing
    end = until_over(world, call)
    assert isinstance(end, JobGivenUp)
    assert end.code is FailureCode.WORKER_LOST
    noticed_s = timing.probe_after_s + timing.unreachable_grace_s + 3 * timing.probe_interval_s
    assert world.now - killed_at <= noticed_s + timing.retry_wait_s + timing.probe_interval_s


def test_a_frozen_worker_is_given_up_and_its_late_image_is_dropped(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=8)
    until_running(world, worker)
    world.run_for(0.3)
    other = world.add_worker("other")
    worker.freeze(30.0)
    assert isinstance(until_over(world, call, world.timing.peer_lost_s + 4.0), ImageDelivered)
    assert other.runs == 1
    world.run_for(40.0)
    assert isinstance(worker.session.slot, Free)
    assert len(worker.session.held) == 0
    assert frontend.desk.ready_workers(frontend.reading()) == 2


def test_a_late_image_is_dropped_while_another_worker_draws(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=8)
    until_running(world, worker)
    world.run_for(7.5 * 0.25)
    other = world.add_worker("other")
    worker.freeze(30.0, engine_too=False)  # It draws on, and cannot say so.
    world.run_until(lambda: other.running is not None, world.timing.peer_lost_s + 1.0)
    current = other.running
    world.after(0.5, worker.thaw)
    end = until_over(world, call)
    assert isinstance(end, ImageDelivered)
    *_, execution_id = bytes(end.png).decode().split("|")
    assert bytes.fromhex(execution_id) == current
    assert world.broker.core.state.counters.shed["fenced_images"] == 1


def test_a_repeat_may_get_an_earlier_image_than_the_one_that_nobody_got(world, frontend, worker, monkeypatch):
    world.ask(frontend, "key", "a cat", steps=8, repeats="again")
    until_running(world, worker)
    world.network.cut(worker.links[0], up=True, down=True, duration_s=60.0)
    other = world.add_worker("other")
    send = other.send
    monkeypatch.setattr(
        other, "send", lambda index, message: isinstance(message, Outcome) or send(index, message)
    )
    world.run_until(lambda: len(other.session.held) == 1 and not other.session.encoding, 20.0)
    world.run_for(1.5)
    world.network.cut(other.links[0], up=False, down=True, duration_s=4.0)
    frontend.leave(world.calls[0])
    world.network.heal(worker.links[0])
    world.run_until(lambda: len(world.broker.core.state.workers) == 2, 5.0)
    repeat = world.ask(frontend, "key", "a cat", steps=8, repeats="again")
    assert isinstance(until_over(world, repeat), ImageDelivered)
    assert executions(world) == 2


def test_a_restarted_worker_takes_its_predecessors_place_at_once(world, frontend, worker):
    worker.kill()
    world.add_worker("worker")
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 0, 2.0)
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 1, 2.0)
    assert len(world.broker.core.state.workers) == 1


def test_of_two_workers_of_one_name_the_older_ends(world, frontend, worker):
    world.add_worker("worker")
    world.run_until(lambda: worker.exited is not None, 5.0)
    assert worker.exited is not None
    assert worker.exited.code != 0
    assert "worker_id" in worker.exited.reason
    world.run_for(5.0)
    assert len(world.broker.core.state.workers) == 1


def test_after_a_restart_of_the_broker_the_younger_of_two_namesakes_stays(world, frontend, worker):
    worker.freeze(20.0)
    younger = world.add_worker("worker")
    world.run_for(5.0)
    world.restart_broker()
    world.run_for(30.0)
    assert younger.exited is None
    assert worker.exited is not None


def test_of_namesakes_of_nearly_one_age_whichever_clock_says_so_stays(world, frontend, worker):
    world.run_for(1.0)
    elder = world.add_worker("twin")
    elder.clock = Clock(0.97, 0.03 * world.now)
    elder.freeze(20.0)
    younger = world.add_worker("twin")
    world.run_for(4.0)
    worker.kill()
    world.restart_broker()
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 1, 8.0)
    call = world.ask(frontend, "key", "a cat", steps=60)
    world.run_until(lambda: younger.running is not None, world.timing.rebuild_s + 1.0)
    world.run_until(lambda: not elder.frozen, 20.0)
    assert isinstance(until_over(world, call, 30.0), ImageDelivered)
    assert younger.exited is not None
    assert executions(world) == 2


def test_a_frozen_worker_is_not_counted_as_ready(world, frontend, worker):
    worker.freeze(4.0)
    limit_s = world.timing.probe_after_s + 0.5
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 0, limit_s)
    world.run_until(lambda: frontend.desk.ready_workers(frontend.reading()) == 1, 4.0)


def test_a_draining_worker_finishes_its_job_and_leaves(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat")
    until_running(world, worker)
    worker.drain()
    world.run_until(lambda: worker.exited is not None, 10.0)
    assert worker.exited is not None
    assert worker.exited.code == 0
    assert isinstance(call.end, ImageDelivered)
    world.run_for(0.1)
    assert len(world.broker.core.state.workers) == 0


# --- Brokers and frontends -------------------------------------------------------------------------


def test_a_restarted_broker_adopts_what_runs_and_the_image_comes(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=20)
    until_running(world, worker)
    world.run_for(0.3)
    world.restart_broker()
    assert isinstance(until_over(world, call, 20.0), ImageDelivered)
    assert executions(world) == 1


def test_a_restarted_broker_finds_an_image_that_was_finished_without_it(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=4)
    until_running(world, worker)
    world.run_for(0.3)
    world.restart_broker(away_s=2.0)
    assert isinstance(until_over(world, call, 20.0), ImageDelivered)
    assert executions(world) == 1


def test_slow_steps_survive_a_restart_of_the_broker(world, frontend, worker):
    world.temper = Temper(step_s=(9.0, 9.0))
    call = world.ask(frontend, "key", "a cat", steps=3, deadline_s=120)
    until_running(world, worker)
    world.run_for(1.0)
    world.restart_broker()
    assert isinstance(until_over(world, call, 60.0), ImageDelivered)


def test_a_silent_broker_is_said_after_its_time_and_then_at_once(world, frontend, worker):
    world.broker.kill()
    first = world.ask(frontend, "key", "a cat")
    world.run_until(lambda: not first.is_open, world.timing.broker_silent_s + 0.1)
    second = world.ask(frontend, "key", "a cat")
    assert isinstance(second.end, JobRefused)
    assert second.end.reason is RefusalReason.BROKER_UNREACHABLE


def test_a_frozen_broker_holds_nobodys_silence_against_them(world, frontend, worker):
    call = world.ask(frontend, "key", "a cat", steps=40)
    until_running(world, worker)
    world.broker.freeze(10.0)
    assert isinstance(until_over(world, call, 30.0), ImageDelivered)
    assert executions(world) == 1


def test_a_lost_frontend_frees_its_workers(world, frontend, worker):
    world.ask(frontend, "key", "a cat", steps=60, deadline_s=60)
    until_running(world, worker)
    frontend.kill()
    timing = world.timing
    noticed_s = timing.probe_after_s + timing.unreachable_grace_s + 2 * timing.probe_interval_s
    world.run_until(lambda: isinstance(worker.session.slot, Free), noticed_s + 0.25 + 0.1)


def test_a_link_that_is_cut_one_way_costs_an_accepted_job_no_image(world, frontend, worker, other):
    call = world.ask(frontend, "key", "a cat", steps=12)
    world.run_until(lambda: worker.running is not None or other.running is not None, 1.0)
    busy = worker if worker.running else other
    world.network.cut(busy.links[0], up=True, down=False, duration_s=20.0)
    assert isinstance(until_over(world, call, 20.0), ImageDelivered)
