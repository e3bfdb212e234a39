"""The worker's decisions, without sockets, processes and clock: `events.py` in, `actions.py` out.

Its slot is the truth about what runs (DESIGN.md). It registers by reporting, runs one job at a time in an
engine process that it replaces when it dies or hangs, and holds each outcome until the broker releases it;
some images longer, for repeats of their call. The slot ends with the pixels: the PNG is made beside the next
job.
"""

from dataclasses import dataclass, field
from typing import Final, assert_never

from gpu_worker.actions import Action, Exit, ReconnectToBroker, StartEngine
from gpu_worker.broker_side import BrokerSide
from gpu_worker.brokers import Brokers
from gpu_worker.drain import Drain
from gpu_worker.encoding import Encodings
from gpu_worker.engine_keeper import Dying, EngineKeeper, Ready
from gpu_worker.events import (
    DrainRequested,
    EngineEvent,
    EngineExited,
    EngineLoading,
    EngineReady,
    Event,
    FromBroker,
    ReadingsTaken,
    TimerFired,
)
from gpu_worker.executions import Executions
from gpu_worker.limits import SessionLimits
from gpu_worker.outbox import Outbox
from gpu_worker.outcomes import OutcomeStore
from gpu_worker.slot import Slot, in_engine
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.failures import RefusalReason
from proto.messages import Refuse, Start, ToWorker, WorkerView
from proto.timing import Timing

EXIT_ENGINE_FAILED: Final = 1
"""No engine became ready, again and again. A fresh worker, or a person, may do better."""


@dataclass(slots=True, kw_only=True)
class Session:
    worker_id: str
    incarnation: bytes
    """This life of the worker process."""
    host: str
    timing: Timing
    limits: SessionLimits
    started_at: float
    brokers: int = 1
    """How many it is connected to."""

    engine: EngineKeeper = field(init=False)
    contacts: Brokers = field(init=False)
    broker_side: BrokerSide = field(init=False)
    executions: Executions = field(init=False)
    drain: Drain | None = None
    """Set while draining."""
    _over: bool = False
    _outbox: Outbox = field(default_factory=Outbox)

    def __post_init__(self) -> None:
        self.engine = EngineKeeper(limits=self.limits, started_at=self.started_at)
        self.contacts = Brokers(timing=self.timing, started_at=self.started_at, count=self.brokers)
        self.broker_side = BrokerSide(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            host=self.host,
            brokers=self.contacts,
            started_at=self.started_at,
        )
        self.executions = Executions(
            limits=self.limits,
            engine=self.engine,
            brokers=self.contacts,
            broker_side=self.broker_side,
            outbox=self._outbox,
            idle_since=self.started_at,
        )

    @property
    def slot(self) -> Slot:
        return self.executions.slot

    @property
    def encoding(self) -> Encodings:
        return self.executions.encoding

    @property
    def held(self) -> OutcomeStore:
        return self.executions.held

    # --- In and out ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        if self._over:
            return []
        match event:
            case FromBroker(broker=broker, message=message):
                self._from_broker(broker, message, now)
            case ReadingsTaken(readings=readings):
                self.broker_side.take_readings(readings, now)
            case DrainRequested():
                self._begin_drain(now)
            case TimerFired():
                pass  # Whatever is due is done below, after every event.
            case _:
                self._from_engine(event, now)
        self._do_what_is_due(now)
        return self._outbox.take()

    def next_deadline(self) -> float | None:
        """When to send `TimerFired`, on the clock of `handle`; None once the session is over."""
        if self._over:
            return None
        instants = [self.contacts.next_deadline()]
        if self.drain is not None:
            instants.append(self._leaves_at(self.drain))
        elif (engine_deadline := self.engine.next_deadline()) is not None:
            instants.append(engine_deadline)
        return min(instants + self.executions.deadlines())

    def is_stuck(self, now: float) -> bool:
        """Whether it has done all that it can about an engine without progress, in vain: the killed process
        does not end. Then only a new worker, or a person, can help.
        """
        immortal_at = self.engine.immortal_at()
        return not self._over and immortal_at is not None and now >= immortal_at

    def _do_what_is_due(self, now: float) -> None:
        if self._over:
            return
        self._watch_engine(now)
        self.executions.watch(now)
        if self.drain is not None and now >= self._leaves_at(self.drain):
            self._leave("the time to drain is over" if now >= self.drain.deadline else "drained")
            return
        for broker in self.contacts:
            if now >= self.contacts.contact(broker).silent_at:
                self._reconnect(broker, now)
            if now >= self.contacts.contact(broker).next_report_at:
                self._report(broker, now)

    def _end_session(self, code: int, reason: str) -> None:
        self._outbox.add(Exit(code=code, reason=reason))
        self._over = True

    # --- The brokers ---------------------------------------------------------------------------

    def _from_broker(self, broker: int, message: ToWorker, now: float) -> None:
        if not isinstance(message, Refuse):
            self.contacts.contact(broker).heard(now)  # A broker that does not serve is as good as none.
        match message:
            case WorkerView():
                self._viewed(broker, message, now)
            case Start():
                self.executions.start(broker, message, now, draining=self.drain is not None)
            case Refuse(reason=RefusalReason.SUPERSEDED, detail=detail):
                hint = "give each worker process a worker_id of its own"
                self._end_session(EXIT_BAD_CONFIGURATION, f"{detail}; {hint}")
            case Refuse(reason=reason, detail=detail):
                if self.contacts.contact(broker).refused(reason):
                    self._outbox.note(
                        "broker does not serve this worker",
                        "error",
                        broker=broker,
                        reason=reason.value,
                        detail=detail,
                    )
            case _:
                assert_never(message)

    def _viewed(self, broker: int, view: WorkerView, now: float) -> None:
        if self.contacts.viewed(broker, view, now):
            self._outbox.note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
            for double in self.contacts.doubles(view.epoch, now):
                names = {"broker": double, "broker_id": view.broker_id}
                self._outbox.note("two endpoints lead to one broker", "error", **names)
        self.executions.settle(broker, view, now)

    def _reconnect(self, broker: int, now: float) -> None:
        contact = self.contacts.contact(broker)
        if (event := contact.reconnected(now)) is not None:
            silent_s = round(now - contact.last_heard_at, 3)
            self._outbox.note(event, "warning", broker=broker, broker_id=contact.broker_id, silent_s=silent_s)
        self._outbox.add(ReconnectToBroker(broker=broker))

    def _report(self, broker: int, now: float) -> None:
        self.contacts.contact(broker).reported(now)
        if self.contacts.is_double(broker, now):
            return
        self._outbox.send(
            broker,
            self.broker_side.report(
                broker,
                self.engine,
                self.slot,
                self.encoding,
                self.held,
                self.executions.tally,
                draining=self.drain is not None,
                now=now,
            ),
        )

    # --- The engine ----------------------------------------------------------------------------

    def _from_engine(self, event: EngineEvent, now: float) -> None:
        if not self.engine.is_present(event.child):
            return  # The last words of a process that is gone.
        match event:
            case EngineLoading(activity=activity, percent=percent):
                if self.engine.loading(activity, percent, now):
                    self.contacts.report_soon(now)
            case EngineReady(model=model):
                if self.engine.ready(model):
                    self._outbox.note("engine ready", model=model.name, child=event.child)
                    self.contacts.report_soon(now)
            case EngineExited():
                self._engine_gone(event, now)
            case _:
                self.executions.from_job(event, now)

    def _engine_gone(self, event: EngineExited, now: float) -> None:
        busy, reason = in_engine(self.slot), event.reason
        self.executions.engine_gone(event, now)
        if event.hopeless:
            self._leave(reason, EXIT_BAD_CONFIGURATION)
            return
        pause_s = self.engine.gone(
            reason,
            None if busy is None else busy.claim.parameters_digest,
            now,
            temporary=event.temporary,
        )
        self.contacts.report_soon(now)
        if self.drain is not None:
            return
        if self.engine.is_given_up:
            tries = self.engine.never_ready
            self._leave(
                f"{tries} engine processes in a row did not become ready; the last one: {reason}",
                EXIT_ENGINE_FAILED,
            )
            return
        job_id = None if busy is None else busy.job.job_id
        self._outbox.note("engine process ended", "error", reason=reason, restart_in_s=pause_s, job_id=job_id)
        if self.engine.is_quarantined:
            self._outbox.note("worker quarantined", "error", duration_s=pause_s)

    def _watch_engine(self, now: float) -> None:
        if self.drain is not None:
            return
        child = self.engine.start_if_due(now)
        if child is not None:
            self._outbox.add(StartEngine(child=child))
            self.contacts.report_soon(now)
        elif self.engine.hangs(now):
            self.executions.kill_engine(f"no progress in loading for {self.limits.load_s:g} s", None, now)

    # --- The end -------------------------------------------------------------------------------

    def _begin_drain(self, now: float) -> None:
        if self.drain is not None:
            self._leave("told twice to end")
            return
        self.drain = Drain(deadline=now + self.timing.drain_s)
        self._outbox.note(
            "worker draining", busy=not self.executions.is_idle, unreleased=self.held.unreleased
        )
        self.contacts.report_soon(now)

    def _leaves_at(self, drain: Drain) -> float:
        idle_since = self.executions.idle_since if self.executions.is_idle else None
        return drain.leaves_at(idle_since, self.held.unreleased, patience_s=2 * self.contacts.interval_s)

    def _leave(self, reason: str, code: int = 0) -> None:
        for broker in self.contacts:
            self._outbox.send(broker, self.broker_side.leave(broker, reason))
        self._end_session(code, reason)

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        if not self.executions.is_idle and not self._over:
            assert isinstance(self.engine.state, Ready | Dying), (
                f"an execution without an engine: {self.engine.state}"
            )
        if self.engine.is_given_up and self.drain is None:
            assert self._over, "it goes on without hope of an engine"
        self.executions.check_invariants()
        self.engine.check_invariants()
