"""Valid messages with absurd contents, at the three cores: nothing fails, and what they say can be read."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

from fuzz.target import Finding, Target, same
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from samples import strategies as wire
from samples.broker_driver import Driver
from samples.desk_driver import DeskDriver
from samples.session_driver import SessionDriver
from samples.wire import EPOCH, PARAMETERS, identifier

from broker.events import FrontendUnreachable, TimerFired, WorkerUnreachable
from frontend import errors
from frontend.actions import EndJob, ImageDelivered, JobGivenUp, JobRefused
from frontend.events import FromBroker as DeskHeard
from frontend.events import WaiterLeft
from frontend.service import encode_answer
from gpu_worker.actions import RunJob
from gpu_worker.events import EngineDrawn, EngineFinished
from gpu_worker.events import FromBroker as SessionHeard
from gpu_worker.events import TimerFired as SessionTimerFired
from proto.codec import decode, encode
from proto.messages import Message

POOL: Final = (EPOCH, *(identifier(f"execution {n}") for n in (1, 2, 3)), *map(identifier, range(4)))
"""Few ids, so that messages speak of the same things, and of executions that the broker begins."""
NAMED: Final = {"worker_id", "frontend_id", "key_fingerprint", "host"}
PAUSES_S: Final = (0.0, 0.01, 0.3, 2.0, 9.0, 100.0)


def with_few_names(message: Any, number: int) -> Any:
    """The same message about the ids of `POOL`, said as the `number`-th, or with the `seq` that it had."""
    return _renamed(message, number)


def _renamed(value: Any, number: int, name: str = "") -> Any:
    if is_dataclass(value):
        changed = {
            each.name: _renamed(getattr(value, each.name), number, each.name) for each in fields(value)
        }
        return replace(value, **changed)  # type: ignore[type-var]
    if isinstance(value, tuple):
        return tuple(_renamed(each, number, name) for each in value)
    if isinstance(value, bytes) and len(value) == 16 and name != "body":
        return POOL[value[0] % len(POOL)]
    if name in NAMED:
        return f"{name} {len(value) % 3}"
    if name == "seq" and value % 2:
        return number
    return value


def sent_as_it_is(message: Message) -> None:
    """What a core says can be read by whom it is meant for: otherwise it is lost there."""
    same(message, decode(encode(message)))


class Believing(Driver):
    """A broker whose peers may lie: then its tables can contradict each other, but nothing may fail."""

    def tell(self, event: Any) -> list[Any]:
        self.actions = self.core.handle(event, self.now)
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.now:
            raise Finding("a deadline in the past")
        return self.actions


broker_steps = st.lists(
    st.one_of(
        st.tuples(st.just("worker"), wire.worker_reports),
        st.tuples(st.just("worker"), wire.images | wire.failures | wire.refusals | wire.leaves),
        st.tuples(st.just("frontend"), wire.frontend_reports | wire.snapshot_requests | wire.leaves),
        st.tuples(st.just("frontend"), wire.submits),
        st.tuples(st.just("time"), st.sampled_from(PAUSES_S)),
        st.tuples(st.just("gone"), st.integers(0, 3)),
    ),
    max_size=14,
)


@wire.REPEATABLE
@given(steps=broker_steps, queue_limit=st.integers(0, 3), rebuild_s=st.sampled_from((0.0, 3.0)))
def broker_takes(steps: list[tuple[str, Any]], queue_limit: int, rebuild_s: float) -> None:
    driver = Believing(queue_limit, rebuild_s)
    driver.tell(TimerFired())
    for number, (kind, what) in enumerate(steps, 1):
        done: list[Any]
        match kind:
            case "worker":
                done = driver.from_worker(with_few_names(what, number), b"w%d" % (number % 4))
            case "frontend":
                done = driver.from_frontend(with_few_names(what, number), b"f%d" % (number % 4))
            case "time":
                done = driver.after(what)
            case _:
                done = driver.tell(WorkerUnreachable(route=b"w%d" % what))
                done += driver.tell(FrontendUnreachable(route=b"f%d" % what))
        for action in done:
            if hasattr(action, "message"):
                sent_as_it_is(action.message)


session_steps = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1), wire.worker_views | wire.refusals),
        st.tuples(st.integers(0, 1), wire.starts),
        st.tuples(st.just(-1), st.sampled_from(PAUSES_S)),
        st.tuples(st.just(-2), st.binary(max_size=400)),
    ),
    max_size=14,
)


@wire.REPEATABLE
@given(steps=session_steps)
def session_takes(steps: list[tuple[int, Any]]) -> None:
    driver = SessionDriver(brokers=2)
    driver.become_ready()
    running: bytes | None = None
    for number, (whence, what) in enumerate(steps, 1):
        if driver.session.next_deadline() is None:
            return  # A broker has ended it.
        done: list[Any] = []
        match whence:
            case -1:
                done = driver.after(what, answered=False)
            case -2 if running is not None:
                drawn = EngineDrawn(child=driver.child, execution_id=running, inference_time_s=1.0)
                done = driver.tell(drawn)
                done += driver.tell(EngineFinished(child=driver.child, execution_id=running, png=what))
                running = None
            case -2:
                done = driver.tell(SessionTimerFired())
            case broker:
                done = driver.tell(SessionHeard(broker=broker, message=with_few_names(what, number)))
        running = next((each.job.execution_id for each in done if isinstance(each, RunJob)), running)
        for action in done:
            if hasattr(action, "message"):
                sent_as_it_is(action.message)


desk_steps = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1), wire.images | wire.failures | wire.refusals | wire.snapshots),
        st.tuples(st.integers(0, 1), wire.frontend_views),
        st.tuples(st.just(-1), st.sampled_from(PAUSES_S)),
        st.tuples(st.sampled_from((-2, -3)), st.integers(0, 3)),
    ),
    max_size=14,
)


@wire.REPEATABLE
@given(steps=desk_steps)
def desk_takes(steps: list[tuple[int, Any]]) -> None:
    """Two hostile brokers; callers get an answer that can be said."""
    driver = DeskDriver(brokers=2)
    for number, (whence, what) in enumerate(steps, 1):
        done: list[Any] = []
        match whence:
            case -1:
                done = driver.after(what)
            case -2:
                if identifier(what) not in driver.desk.jobs:
                    done = driver.open(what)
            case -3:
                done = driver.tell(WaiterLeft(job_id=identifier(what)))
            case broker:
                done = driver.tell(DeskHeard(broker=broker, message=with_few_names(what, number)))
        for action in done:
            if hasattr(action, "message"):
                sent_as_it_is(action.message)
            elif isinstance(action, EndJob):
                answered(action.end)


def answered(end: ImageDelivered | JobRefused | JobGivenUp) -> bytes | Status:
    match end:
        case ImageDelivered():
            return encode_answer(end, PARAMETERS)
        case JobRefused():
            return errors.of_job(errors.refused(end), "job")
        case JobGivenUp():
            return errors.of_job(errors.given_up(end), "job")


TARGETS: Final = (
    Target(
        name="broker_core",
        judge=broker_takes.hypothesis.fuzz_one_input,
        property_test=broker_takes,
        modules=("broker.core", "broker.worker_side", "broker.frontend_side", "broker.submissions"),
        share=0.1,
    ),
    Target(
        name="worker_session",
        judge=session_takes.hypothesis.fuzz_one_input,
        property_test=session_takes,
        modules=("gpu_worker.session", "gpu_worker.executions", "gpu_worker.brokers"),
        share=0.1,
    ),
    Target(
        name="job_desk",
        judge=desk_takes.hypothesis.fuzz_one_input,
        property_test=desk_takes,
        modules=("frontend.job_desk", "frontend.brokers", "frontend.desk_job", "frontend.errors"),
        share=0.1,
    ),
)
