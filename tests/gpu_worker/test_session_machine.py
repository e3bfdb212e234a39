"""The worker session told anything in any order: a Hypothesis state machine."""

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from samples.session_driver import INCARNATION, SessionDriver
from samples.wire import CARD, EPOCH, READINGS, claim, identifier, start, worker_view

from gpu_worker.actions import CancelJob, Exit, KillEngine, RunJob, SendToBroker, StartEngine
from gpu_worker.events import (
    DrainRequested,
    EngineDrawn,
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
from gpu_worker.slot import Busy, Free, in_engine
from proto.codec import decode, encode
from proto.failures import FailureCode, RefusalReason
from proto.messages import JobPhase, Outcome, Refuse, WorkerPhase, WorkerReport

EXECUTIONS = tuple(f"execution {n}" for n in range(8))
EPOCHS = (EPOCH, identifier("other epoch"))
ENGINE_FAILURES_MAX = 3
QUARANTINE_S = 50.0
BACKOFF_MAX_S = 2.0

executions = st.sampled_from(EXECUTIONS)
rarely = st.integers(0, 9).map(lambda n: n == 9)
very_rarely = st.integers(0, 50).map(lambda n: n == 50)


def digest_of(execution_id: bytes) -> bytes:
    """By the end of its name, so that the same job is tried again as well."""
    return identifier(f"digest {execution_id.rstrip(b'.')[-1] % 4}")


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.worker = SessionDriver(
            engine_failures_max=ENGINE_FAILURES_MAX, quarantine_s=QUARANTINE_S, backoff_max_s=BACKOFF_MAX_S
        )
        self.child = 0
        """The process that lives; 0 for none."""
        self.was_ready = False
        self.is_killed = False
        self.never_ready = 0
        """Processes in a row that ended so."""
        self.killed_on: bytes | None = None
        """The digest of the job that was in the process when it was killed."""
        self.died_on: set[bytes] = set()
        """Digests, since the last image."""
        self.quarantined_until = 0.0
        self.is_draining = False
        self.kept: set[bytes] = set()
        """Whatever was told to be, or released."""
        self.shed = 0
        self.begun: set[bytes] = set()
        self.running: bytes | None = None
        self.encoding: list[bytes] = []
        """Drawn, and their PNG not there yet; the oldest first."""
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
                    assert self.worker.now >= self.quarantined_until, "an engine in quarantine"
                    assert self.never_ready < ENGINE_FAILURES_MAX, "one try too many"
                    self.child, self.was_ready, self.is_killed = child, False, False
                    self.killed_on = None
                case KillEngine(child=child, reason=reason):
                    assert child == self.child, "a process is killed that is not there"
                    assert not self.is_killed, "killed twice"
                    self.is_killed = True
                    self.killed_on = self.digest_of_blamed(reason)
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

    def digest_of_running(self) -> bytes | None:
        return None if self.running is None else digest_of(self.running)

    def digest_of_blamed(self, reason: str) -> bytes | None:
        if reason.startswith("no PNG"):
            return digest_of(self.encoding[0])
        return None if reason.startswith("out of memory") else self.digest_of_running()

    def _look_at_message(self, message) -> None:
        if isinstance(message, Outcome):
            assert message.execution_id in self.begun, "an outcome of nothing"
            first = self.outcomes.setdefault(message.execution_id, message)
            assert (first.image, first.failure) == (message.image, message.failure), (
                "two ends of one execution"
            )
            if message.execution_id == self.running:
                self.running = None
            if message.execution_id in self.encoding:
                self.encoding.remove(message.execution_id)
        if not isinstance(message, Refuse):
            assert message.seq > self.last_seq, "a number that does not grow"
            self.last_seq = message.seq
        if isinstance(message, WorkerReport):
            reported = None if message.running is None else message.running.execution_id
            assert reported == self.running
            self._look_at_held(message)
            in_quarantine = self.child == 0 and self.worker.now < self.quarantined_until
            if not self.is_draining:
                assert (message.phase is WorkerPhase.QUARANTINED) == in_quarantine
            if message.phase is WorkerPhase.READY:
                assert self.child
                assert self.was_ready
                assert not self.is_killed

    def _look_at_held(self, report) -> None:
        unready = [held for held in report.held if held.size_bytes == 0 and held.failure is None]
        assert [held.execution_id for held in unready] == self.encoding
        assert not any(held.released for held in unready)
        for held in report.held[len(unready) :]:
            outcome = self.outcomes[held.execution_id]
            assert held.released == (held.execution_id in self.kept)
            assert not held.released or outcome.image, "a failure is kept"
            assert held.size_bytes == len(outcome.body)
        released = [held.released for held in report.held]
        assert released == sorted(released), "unreleased ones come first"
        assert report.outcomes_shed >= self.shed
        self.shed = report.outcomes_shed

    @invariant()
    def the_slot_is_what_was_begun_and_has_not_ended(self) -> None:
        if not self.is_over:
            slot = self.worker.session.slot
            assert (None if isinstance(slot, Free) else slot.execution_id) == self.running
            assert [each.job.execution_id for each in self.worker.session.encoding] == self.encoding

    # --- The broker ----------------------------------------------------------------------------

    @rule(
        execution=executions,
        remaining_ms=st.sampled_from([0, 1000, 60_000]),
        detach=st.booleans(),
        wrong=rarely,
        epoch=rarely,
    )
    def start(self, execution, remaining_ms, detach, wrong, epoch) -> None:
        known, before = identifier(execution) in self.begun, self.worker.session.slot
        is_stale = wrong or EPOCHS[epoch] != self.worker.session.contacts.contact(0).epoch
        message = start(
            execution,
            f"job of {execution[-2:]}",
            claim=claim(
                f"job of {execution[-2:]}",
                parameters_digest=digest_of(identifier(execution)),
                detach=detach,
                remaining_ms=remaining_ms,
            ),
            epoch=EPOCHS[epoch],
            incarnation=identifier("stranger") if wrong else INCARNATION,
        )
        self.tell(FromBroker(broker=0, message=message))
        if self.worker.actions and not self.is_over:
            begun, refused = len(self.worker.of(RunJob)), len(self.worker.sent(Refuse))
            assert begun + refused == (0 if known else 1), "begun or refused, and nothing else"
        if known and not self.is_over and isinstance(before, Busy) and before.execution_id == self.running:
            self._look_at_start_again(before, message, is_stale)

    def _look_at_start_again(self, before, message, is_stale) -> None:
        after = in_engine(self.worker.session.slot)
        is_meant = message.execution_id == before.execution_id and not is_stale
        deadline = self.worker.now + message.claim.remaining_ms / 1000
        detach = message.claim.detach or before.claim.detach
        merged = dataclasses.replace(message.claim, detach=detach)
        assert after.claim == (merged if is_meant else before.claim)
        assert after.deadline == (max(before.deadline, deadline) if is_meant else before.deadline)

    @precondition(lambda self: self.running)
    @rule(remaining_ms=st.sampled_from([0, 1000, 90_000]), detach=st.booleans(), wrong=rarely)
    def start_again(self, remaining_ms, detach, wrong) -> None:
        self.start(self.running.decode().rstrip("."), remaining_ms, detach, wrong, epoch=0)

    @rule(
        cancel=st.sets(executions, max_size=2),
        keep=st.sets(executions, max_size=4),
        release=st.sets(executions, max_size=2),
        resend=st.sets(executions, max_size=2),
        epoch=rarely,
        interval_ms=st.sampled_from([500, 1000, 2**31]),
    )
    def view(self, cancel, keep, release, resend, epoch, interval_ms) -> None:
        wants = {"cancel": cancel, "keep": keep, "release": release, "resend": resend}
        lists = {name: tuple(identifier(each) for each in sorted(ids)) for name, ids in wants.items()}
        self.kept |= {each for each in lists["keep"] if each in self.outcomes}
        dropped = set(lists["release"]) - set(lists["cancel"])
        self.encoding = [each for each in self.encoding if each not in dropped]
        view = worker_view(epoch=EPOCHS[epoch], heartbeat_interval_ms=interval_ms, **lists)
        self.tell(FromBroker(broker=0, message=view))
        for execution_id in lists["release"]:
            assert self.is_over or execution_id not in self.worker.session.held
        for execution_id in lists["cancel"]:
            assert self.is_over or execution_id not in self.encoding

    @precondition(lambda self: self.outcomes)
    @rule(what=st.sampled_from(["keep", "keep", "release", "resend"]), which=st.integers(0, 5))
    def the_broker_settles_an_outcome(self, what, which) -> None:
        execution_id = list(self.outcomes)[-1 - which % len(self.outcomes)]
        is_held = execution_id in self.worker.session.held
        if what == "keep":
            self.kept.add(execution_id)
        self.tell(FromBroker(broker=0, message=worker_view(**{what: (execution_id,)})))
        if what == "resend" and not self.is_over:
            assert [outcome.execution_id for outcome in self.worker.sent(Outcome)] == [execution_id] * is_held

    @rule(reason=st.sampled_from(RefusalReason), sure=very_rarely)
    def refused(self, reason, sure) -> None:
        if sure:
            self.tell(FromBroker(broker=0, message=Refuse(reason=reason, detail="no")))
            assert self.is_over or reason is not RefusalReason.SUPERSEDED

    # --- The engine ----------------------------------------------------------------------------

    def _brings_up_an_engine(self) -> None:
        """After whatever pause it needs."""
        self.tell(FromBroker(broker=0, message=worker_view()))
        if not self.child:
            self.time_passes(max(BACKOFF_MAX_S, self.quarantined_until - self.worker.now))
        if self.child and not self.was_ready:
            self.engine_is_ready()

    @initialize(is_up=st.integers(0, 3))
    def begins(self, is_up) -> None:
        """Mostly with an engine."""
        if is_up:
            self._brings_up_an_engine()

    @precondition(lambda self: not self.running)
    @rule(kind=st.integers(0, 2))
    def a_job_begins(self, kind) -> None:
        self._brings_up_an_engine()
        self.start(f"whole {len(self.begun)} {kind}", 60_000, detach=False, wrong=False, epoch=0)

    @precondition(lambda self: not self.running)
    @rule(kind=st.integers(0, 2), end=st.sampled_from(["image", "crash", "poison", "hang"]))
    def a_whole_job(self, kind, end) -> None:
        self.a_job_begins(kind)
        if self.running is None:
            return  # It drains, or its engine is being killed.
        if end == "image":
            self.engine_draws(text_cached=True)
            if self.encoding:
                self.engine_encodes(size=100, which=-1)
            return
        if end == "hang":
            self.time_passes(10.0)
        self.engine_exits(hopeless=False, poisoned=end == "poison")

    @precondition(lambda self: not self.was_ready)
    @rule(times=st.integers(1, ENGINE_FAILURES_MAX))
    def engines_die_unready(self, times) -> None:
        for _ in range(times):
            if not self.child:
                self.time_passes(max(BACKOFF_MAX_S, self.quarantined_until - self.worker.now))
            if self.child:
                self.engine_exits(hopeless=False, poisoned=False)

    @precondition(lambda self: self.child)
    @rule()
    def engine_is_ready(self) -> None:
        if not self.is_killed:
            self.was_ready, self.never_ready = True, 0
        self.tell(EngineReady(child=self.child, model=CARD))

    @precondition(lambda self: self.child and not self.was_ready)
    @rule(percent=st.integers(-5, 105))
    def engine_loads(self, percent) -> None:
        self.tell(EngineLoading(child=self.child, activity="weights", percent=percent))

    @precondition(lambda self: self.child)
    @rule(hopeless=very_rarely, poisoned=st.booleans())
    def engine_exits(self, hopeless, poisoned) -> None:
        self._engine_is_gone()
        was_over, child = self.is_over, self.worker.child
        code = FailureCode.DEVICE_POISONED if poisoned else None
        self.tell(EngineExited(child=child, reason="it ended", hopeless=hopeless, code=code))
        assert self.running is None, "a job outlived its engine"
        assert self.encoding == [], "an image outlived the engine that was to make a PNG of it"
        if self.never_ready == ENGINE_FAILURES_MAX and not self.is_draining:
            assert self.is_over
            assert was_over or hopeless or self.worker.exit().code == 1
            assert was_over or self.worker.left()

    def _engine_is_gone(self) -> None:
        digest = self.killed_on if self.is_killed else self.digest_of_running()
        if digest is not None:
            self.died_on.add(digest)
            if len(self.died_on) > 1:
                self.quarantined_until = self.worker.now + QUARANTINE_S
        self.never_ready += not self.was_ready
        self.child, self.was_ready = 0, False

    @precondition(lambda self: self.child and self.running)
    @rule(phase=st.sampled_from(JobPhase), step=st.integers(0, 4))
    def engine_goes_on(self, phase, step) -> None:
        progress = EngineProgress(child=self.child, execution_id=self.running, phase=phase, step=step)
        self.tell(progress)

    @precondition(lambda self: self.child and self.running)
    @rule(text_cached=st.sampled_from([None, False, True]))
    def engine_draws(self, text_cached) -> None:
        execution_id = self.running
        if isinstance(self.worker.session.slot, Busy):
            self.running = None
            self.encoding.append(execution_id)
        self.tell(
            EngineDrawn(
                child=self.child, execution_id=execution_id, inference_time_s=1.0, text_cached=text_cached
            )
        )
        assert self.is_over or self.running is None

    @precondition(lambda self: self.child and self.encoding)
    @rule(size=st.sampled_from([1, 400, 2000]), which=st.sampled_from([0, -1]))
    def engine_encodes(self, size, which) -> None:
        execution_id = self.encoding[which]
        if not self.is_killed:
            self.died_on.clear()
        self.tell(EngineFinished(child=self.child, execution_id=execution_id, png=bytes(size)))
        assert self.is_over or execution_id in self.outcomes

    @precondition(lambda self: self.child and self.running)
    @rule(code=st.sampled_from(FailureCode))
    def engine_fails(self, code) -> None:
        execution_id = self.running
        self.tell(EngineFailed(child=self.child, execution_id=execution_id, code=code, detail="d" * 2000))
        assert self.is_over or execution_id in self.outcomes
        assert self.is_over or self.is_killed or code is not FailureCode.OUT_OF_MEMORY

    @precondition(lambda self: self.child and self.encoding)
    @rule(code=st.sampled_from([FailureCode.ENGINE_ERROR, FailureCode.OUT_OF_MEMORY]))
    def no_png_comes_of_it(self, code) -> None:
        execution_id, was_killed = self.encoding[0], self.is_killed
        self.tell(EngineFailed(child=self.child, execution_id=execution_id, code=code, detail=""))
        assert self.is_over or execution_id in self.outcomes
        assert self.is_killed == was_killed, "what is drawn is no reason to replace the engine"

    @rule(execution=executions, which=st.integers(0, 5))
    def a_dead_engine_speaks(self, execution, which) -> None:
        child = self.child - 1 if self.child else self.worker.child
        if child < 1:
            return
        execution_id = identifier(execution)
        events = (
            EngineReady(child=child, model=CARD),
            EngineExited(child=child, reason="again"),
            EngineLoading(child=child, activity="weights", percent=1),
            EngineDrawn(child=child, execution_id=execution_id, inference_time_s=1.0),
            EngineFinished(child=child, execution_id=execution_id, png=b"png"),
            EngineFailed(child=child, execution_id=execution_id, code=FailureCode.CANCELLED, detail=""),
        )
        self.tell(events[which])
        assert not self.worker.sent(Outcome)

    # --- Others --------------------------------------------------------------------------------

    @rule()
    def readings_come(self) -> None:
        self.tell(ReadingsTaken(readings=READINGS))

    @rule(sure=very_rarely)
    def drains(self, sure) -> None:
        if sure:
            self.is_draining = True
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
        self.is_draining = True
        self.tell(DrainRequested())
        self.worker.now += self.worker.timing.drain_s
        self.tell(TimerFired())
        assert self.is_over


SessionMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
test_anything_in_any_order = SessionMachine.TestCase
