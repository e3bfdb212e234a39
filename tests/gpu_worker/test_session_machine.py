"""The worker session told anything in any order: a Hypothesis state machine."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from samples.session_driver import INCARNATION, SessionDriver
from samples.wire import CARD, EPOCH, READINGS, claim, identifier, start, worker_view

from gpu_worker.actions import CancelJob, Exit, KillEngine, RunJob, SendToBroker, StartEngine
from gpu_worker.events import (
    DrainRequested,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
    FromBroker,
    ReadingsTaken,
    TimerFired,
)
from gpu_worker.slot import Free
from proto.codec import decode, encode
from proto.failures import FailureCode, RefusalReason
from proto.messages import JobPhase, Outcome, Refuse, WorkerPhase, WorkerReport

EXECUTIONS = tuple(f"execution {n}" for n in range(8))
EPOCHS = (EPOCH, identifier("other epoch"))

executions = st.sampled_from(EXECUTIONS)
rarely = st.integers(0, 9).map(lambda n: n == 0)


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.worker = SessionDriver()
        self.child = 0
        """The process that lives; 0 for none."""
        self.was_ready = False
        self.is_killed = False
        self.begun: set[bytes] = set()
        self.running: bytes | None = None
        self.outcomes: dict[bytes, Outcome] = {}
        self.last_seq = 0
        self.is_over = False

    # --- What is looked at after every step ----------------------------------------------------

    def tell(self, event) -> None:
        self.worker.tell(event)
        self.look()

    def look(self) -> None:
        for action in self.worker.actions:
            assert not self.is_over, f"after the end: {action}"
            match action:
                case StartEngine(child=child):
                    assert self.child == 0, "two engine processes"
                    self.child, self.was_ready, self.is_killed = child, False, False
                case KillEngine(child=child):
                    assert child == self.child, "a process is killed that is not there"
                    assert not self.is_killed, "killed twice"
                    self.is_killed = True
                case RunJob(child=child, job=job):
                    assert child == self.child, "a job for a dead engine"
                    assert self.was_ready, "a job for an engine that is not ready"
                    assert not self.is_killed, "a job for a killed engine"
                    assert self.running is None, "two jobs in one engine"
                    assert job.execution_id not in self.begun, "the same execution twice"
                    self.running = job.execution_id
                    self.begun.add(job.execution_id)
                case CancelJob(child=child, execution_id=execution_id):
                    assert (child, execution_id) == (self.child, self.running)
                case SendToBroker(message=message):
                    assert decode(encode(message)) == message, "a message that the broker would drop"
                    self._look_at_message(message)
                case Exit():
                    self.is_over = True

    def _look_at_message(self, message) -> None:
        if isinstance(message, Outcome):
            assert message.execution_id in self.begun, "an outcome of nothing"
            first = self.outcomes.setdefault(message.execution_id, message)
            assert (first.image, first.failure) == (message.image, message.failure), (
                "two ends of one execution"
            )
            if message.execution_id == self.running:
                self.running = None
        if not isinstance(message, Refuse):
            assert message.seq > self.last_seq, "a number that does not grow"
            self.last_seq = message.seq
        if isinstance(message, WorkerReport):
            reported = None if message.running is None else message.running.execution_id
            assert reported == self.running
            assert {held.execution_id for held in message.held} <= set(self.outcomes)
            if message.phase is WorkerPhase.READY:
                assert self.child
                assert self.was_ready
                assert not self.is_killed

    @invariant()
    def the_slot_is_what_was_begun_and_has_not_ended(self) -> None:
        if not self.is_over:
            slot = self.worker.session.slot
            assert (None if isinstance(slot, Free) else slot.execution_id) == self.running

    # --- The broker ----------------------------------------------------------------------------

    @rule(execution=executions, remaining_ms=st.sampled_from([0, 1000, 60_000]), wrong=rarely, epoch=rarely)
    def start(self, execution, remaining_ms, wrong, epoch) -> None:
        known = identifier(execution) in self.begun
        message = start(
            execution,
            f"job of {execution[-1]}",
            claim=claim(f"job of {execution[-1]}", remaining_ms=remaining_ms),
            epoch=EPOCHS[epoch],
            incarnation=identifier("stranger") if wrong else INCARNATION,
        )
        self.tell(FromBroker(message=message))
        if self.worker.actions and not self.is_over:
            begun, refused = len(self.worker.of(RunJob)), len(self.worker.sent(Refuse))
            assert begun + refused == (0 if known else 1), "begun or refused, and nothing else"

    @rule(
        cancel=st.sets(executions, max_size=2),
        release=st.sets(executions, max_size=2),
        resend=st.sets(executions, max_size=2),
        epoch=rarely,
        interval_ms=st.sampled_from([0, 200, 1000, 2**31]),
    )
    def view(self, cancel, release, resend, epoch, interval_ms) -> None:
        wants = {"cancel": cancel, "release": release, "resend": resend}
        lists = {name: tuple(identifier(each) for each in sorted(ids)) for name, ids in wants.items()}
        view = worker_view(epoch=EPOCHS[epoch], heartbeat_interval_ms=interval_ms, **lists)
        self.tell(FromBroker(message=view))

    @rule(reason=st.sampled_from(RefusalReason), sure=rarely)
    def refused(self, reason, sure) -> None:
        if sure:
            self.tell(FromBroker(message=Refuse(reason=reason, detail="no")))
            assert self.is_over or reason is not RefusalReason.SUPERSEDED

    # --- The engine ----------------------------------------------------------------------------

    @rule()
    def engine_is_ready(self) -> None:
        if self.child:
            self.was_ready = self.was_ready or not self.is_killed
            self.tell(EngineReady(child=self.child, model=CARD))

    @rule(percent=st.integers(-5, 105))
    def engine_loads(self, percent) -> None:
        if self.child and not self.was_ready:
            self.tell(EngineLoading(child=self.child, activity="weights", percent=percent))

    @rule(hopeless=st.integers(0, 30).map(lambda n: n == 0))
    def engine_exits(self, hopeless) -> None:
        if self.child:
            child, self.child, self.was_ready = self.child, 0, False
            self.tell(EngineExited(child=child, reason="it ended", hopeless=hopeless))
            assert self.running is None, "a job outlived its engine"

    @rule(phase=st.sampled_from(JobPhase), step=st.integers(0, 4))
    def engine_goes_on(self, phase, step) -> None:
        if self.child and self.running:
            progress = EngineProgress(child=self.child, execution_id=self.running, phase=phase, step=step)
            self.tell(progress)

    @rule(size=st.sampled_from([1, 400, 2000]))
    def engine_finishes(self, size) -> None:
        if self.child and self.running:
            execution_id = self.running
            png = bytes(size)
            finished = EngineFinished(
                child=self.child, execution_id=execution_id, png=png, inference_time_s=1.0
            )
            self.tell(finished)
            assert self.is_over or execution_id in self.outcomes

    @rule(code=st.sampled_from(FailureCode))
    def engine_fails(self, code) -> None:
        if self.child and self.running:
            execution_id = self.running
            self.tell(EngineFailed(child=self.child, execution_id=execution_id, code=code, detail="d" * 2000))
            assert self.is_over or execution_id in self.outcomes

    @rule(execution=executions, which=st.integers(0, 4))
    def a_dead_engine_speaks(self, execution, which) -> None:
        child = self.child - 1 if self.child else self.worker.child
        if child < 1:
            return
        execution_id = identifier(execution)
        events = (
            EngineReady(child=child, model=CARD),
            EngineExited(child=child, reason="again"),
            EngineLoading(child=child, activity="weights", percent=1),
            EngineFinished(child=child, execution_id=execution_id, png=b"png", inference_time_s=1.0),
            EngineFailed(child=child, execution_id=execution_id, code=FailureCode.CANCELLED, detail=""),
        )
        self.tell(events[which])
        assert not self.worker.sent(Outcome)

    # --- Others --------------------------------------------------------------------------------

    @rule()
    def readings_come(self) -> None:
        self.tell(ReadingsTaken(readings=READINGS))

    @rule(sure=st.integers(0, 30).map(lambda n: n == 0))
    def drains(self, sure) -> None:
        if sure:
            self.tell(DrainRequested())

    @rule(duration_s=st.sampled_from([0.01, 0.3, 1.1, 4.1, 7.1, 61.0, 121.0]))
    def time_passes(self, duration_s) -> None:
        end = self.worker.now + duration_s
        while (deadline := self.worker.session.next_deadline()) is not None and deadline <= end:
            self.worker.now = deadline
            self.tell(TimerFired())
        self.worker.now = end

    def teardown(self) -> None:
        """Told to end, and with an engine that can be killed, it ends in time."""
        self.tell(DrainRequested())
        self.worker.now += self.worker.timing.drain_s
        self.tell(TimerFired())
        assert self.is_over


SessionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
test_anything_in_any_order = SessionMachine.TestCase
