"""The actors of the world: a real core each, and a simulated shell.

A shell hands events to its core one at a time, performs what comes back, and arms one timer, as
`proto/actor.py` does. It can be killed between any two actions, frozen, and cut off, and lives by a clock of
its own.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, assert_never

from simulation.broken import InvariantBroken
from simulation.calls import Call
from simulation.clock import Clock
from simulation.engine import Engine
from simulation.invariants import CORES
from simulation.network import BROKEN_AFTER_S, Connection

import gpu_worker.actions as worker_actions
from broker.actions import SendToFrontend, SendToWorker
from broker.core import Broker
from broker.events import DrainRequested as BrokerDrains
from broker.events import FromFrontend, FromWorker, FrontendUnreachable, WorkerUnreachable
from broker.events import TimerFired as BrokerTimer
from frontend.actions import EndJob, SnapshotArrived
from frontend.actions import ReconnectToBroker as FrontendReconnects
from frontend.actions import SendToBroker as FrontendSends
from frontend.events import DrainRequested as DeskDrains
from frontend.events import FromBroker as ToDesk
from frontend.events import JobOpened, LeaveRequested, WaiterLeft
from frontend.events import TimerFired as DeskTimer
from frontend.job_desk import JobDesk
from gpu_worker.events import DrainRequested as WorkerDrains
from gpu_worker.events import FromBroker as ToSession
from gpu_worker.events import TimerFired as SessionTimer
from gpu_worker.session import Session
from gpu_worker.slot import Free
from proto.messages import FrontendReport, Message
from proto.notes import Note

if TYPE_CHECKING:
    from simulation.world import World

NEVER: Final = float("inf")
DRAIN_LINGER_S: Final = 1.0
"""Within this a draining broker ends."""
DETACHED_S: Final = 60.0
"""How long a detached job may take, whatever the deadline of its call."""
ENDLESS: Final = 10_000
"""Events that follow from each other in one step."""
Trap = Callable[[Message], bool]


class Actor:
    """A process: alive or not, frozen or not, with a clock of its own."""

    timer_fired: Any
    core: Any

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.clock: Clock = world.new_clock()
        self.alive, self.frozen = True, False
        self.born_at = world.now
        self.died_at = NEVER
        self.disturbed_at = -NEVER
        """When the world last did something to it or its link, or will have done so."""
        self.dies_after: int | None = None
        """Killed in the midst of a step: after so many more actions."""
        self.trap: tuple[Trap, bool] | None = None
        """Killed when it sends such a message; True: just after, False: instead."""
        self._inbox: deque[tuple[Any, Connection | None]] = deque()
        self.thaw_at = 0.0
        """When it goes on, or went on last."""
        self._last_reading = -NEVER
        self._deadline: float | None = None
        self._armed_at = NEVER

    # --- Time ----------------------------------------------------------------------------------

    def reading(self) -> float:
        """Of its own clock."""
        self._last_reading = max(self._last_reading, self.clock.reading_at(self.world.now))
        return self._last_reading

    def disturb(self, for_s: float = 0.0) -> None:
        self.disturbed_at = max(self.disturbed_at, self.world.now + for_s)

    def is_calm_since(self, instant: float) -> bool:
        """Nothing was done to it or its link since then."""
        return self.alive and not self.frozen and self.disturbed_at < instant

    def _arm(self) -> None:
        self._deadline = self.core.next_deadline()
        if self._deadline is None:
            return
        if self._deadline <= self._last_reading:
            raise InvariantBroken(CORES, f"{self.name}: a timer that never rests")
        at = max(self.clock.instant_of(self._deadline), self.world.now)
        if at < self._armed_at:
            self._armed_at = at
            self.world.after(at - self.world.now, self._wake, at)

    def _wake(self, at: float) -> None:
        if not self.alive or at != self._armed_at:
            return  # An earlier wake-up took its place.
        self._armed_at = NEVER
        if not self.frozen:
            self._fire_if_due()

    def _fire_if_due(self) -> None:
        if self._deadline is None:
            return
        if self.clock.reading_at(self.world.now) >= self._deadline - 1e-6:
            self._last_reading = max(self._last_reading, self._deadline)
            self._step(self.timer_fired)
        else:  # It was put off meanwhile.
            at = self._armed_at = self.clock.instant_of(self._deadline)
            self.world.after(at - self.world.now, self._wake, at)

    # --- Steps ---------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Message) -> None:
        if self.frozen:
            self._inbox.append((message, connection))
        elif self.is_heard(connection):
            self._step(self.event_of(connection, message))

    def tell(self, event: object) -> None:
        if not self.alive:
            return
        if self.frozen:
            self._inbox.append((event, None))
        else:
            self._step(event)

    def is_heard(self, _connection: Connection) -> bool:
        return True

    def event_of(self, connection: Connection, message: Message) -> object:
        raise NotImplementedError

    def perform(self, action: Any) -> object | None:
        """Do it; gives an event that follows from it at once, if there is one."""
        raise NotImplementedError

    def _step(self, event: object) -> None:
        events, at = [event], 0
        self.world.stats.steps += 1
        while at < len(events):
            now = self.reading()
            for action in self.core.handle(events[at], now):
                if self.dies_after is not None:
                    self.dies_after -= 1
                    if self.dies_after < 0:
                        self.kill("in the midst of a step")
                if not self.alive:
                    return
                follows = self.perform(action)
                if follows is not None:
                    events.append(follows)
            at += 1
            if at > ENDLESS:
                raise InvariantBroken(CORES, f"{self.name}: a step without end, at last {events[at - 1]}")
        if not self.alive:
            return
        if self.world.self_checks:
            self._check_core()
        self._arm()

    def _check_core(self) -> None:
        self.world.checker.count(CORES)
        try:
            self.core.check_invariants()
        except AssertionError as broken:
            raise InvariantBroken(CORES, f"{self.name}: {broken}") from broken

    def springs(self, message: Message) -> bool:
        """Whether a trap was set for this message, and killed the sender before it could send."""
        if self.trap is None or not self.trap[0](message):
            return False
        after, self.trap = self.trap[1], None
        if after:
            self.dies_after = 0
        else:
            self.kill("just before it sent something")
        return not after

    # --- Faults --------------------------------------------------------------------------------

    def kill(self, how: str = "by SIGKILL") -> None:
        if not self.alive:
            return
        self.world.tell(self.name, f"is killed {how}")
        self.end()

    def end(self) -> None:
        """The process is gone, for whatever reason."""
        self.alive, self.died_at = False, self.world.now
        self._inbox.clear()

    def freeze(self, duration_s: float, *, breaks: bool = False) -> None:
        """Stop the process as SIGSTOP does: what arrives waits. `breaks`: its connections end meanwhile."""
        if not self.alive:
            return
        self.world.tell(self.name, f"is frozen for {duration_s:.1f} s")
        self.frozen = True
        self.thaw_at = max(self.thaw_at, self.world.now + duration_s)
        self.disturb(duration_s)
        self.world.after(duration_s, self._thaw)
        if breaks:
            self.world.after(BROKEN_AFTER_S, self.break_connections)

    def break_connections(self) -> None:
        """It is frozen for so long that the other ends have given it up."""
        raise NotImplementedError

    def thaw(self) -> None:
        self.thaw_at = self.world.now
        self._thaw()

    def _thaw(self) -> None:
        if not self.alive or not self.frozen or self.world.now < self.thaw_at - 1e-9:
            return
        self.world.tell(self.name, "goes on")
        self.frozen = False
        self.disturb()
        self.went_on()
        if self.world.rng.random() < 0.5:
            self._fire_if_due()
        while self._inbox and self.alive and not self.frozen:
            event, connection = self._inbox.popleft()
            if connection is None:
                self._step(event)
            elif self.is_heard(connection):
                self._step(self.event_of(connection, event))
        if self.alive and not self.frozen:
            self._fire_if_due()

    def went_on(self) -> None:
        pass


class BrokerActor(Actor):
    timer_fired = BrokerTimer()

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.epoch = world.new_id(name)
        self.core = Broker(
            broker_id="broker",
            epoch=self.epoch,
            new_execution_id=lambda: world.new_id("x"),
            timing=world.timing,
            queue_limit=world.queue_limit,
        )
        self.routes: dict[bytes, Connection] = {}
        self.first_reading: float | None = None

    def age_s(self) -> float:
        """Since its first event, on its own clock."""
        return 0.0 if self.first_reading is None else self._last_reading - self.first_reading

    def event_of(self, connection: Connection, message: Message) -> object:
        if self.first_reading is None:
            self.first_reading = self.reading()
        self.world.checker.broker_received(self, message)
        if isinstance(connection.peer, WorkerActor):
            return FromWorker(route=connection.route, message=message)  # type: ignore[arg-type]
        return FromFrontend(route=connection.route, message=message)  # type: ignore[arg-type]

    def perform(self, action: Any) -> object | None:
        match action:
            case SendToWorker(route=route, message=message) | SendToFrontend(route=route, message=message):
                if self.springs(message):
                    return None
                connection = self.routes.get(route)
                self.world.checker.broker_sends(self, message, connection)
                self.world.told_message(self.name, message, connection)
                if self.world.network.to_peer(connection, message):
                    return None
                lost = WorkerUnreachable if isinstance(action, SendToWorker) else FrontendUnreachable
                return lost(route=route)
            case Note():
                self.world.checker.broker_noted(self, action)
                self.world.noted(self.name, action)
        return None

    def end(self) -> None:
        super().end()
        self.world.checker.broker_died()
        for connection in self.routes.values():
            if connection.is_open:
                self.world.network.lose(connection)

    def drain(self) -> None:
        """As its shell does: it says so, and ends within a second."""
        self.world.tell(self.name, "is told to end")
        self.tell(BrokerDrains())
        self.world.after(self.world.rng.uniform(0.0, DRAIN_LINGER_S), self._leave)

    def _leave(self) -> None:
        if self.frozen:
            self.world.after(0.5, self._leave)
        elif self.alive:
            self.world.tell(self.name, "ends")
            self.end()

    def break_connections(self) -> None:
        if self.alive and self.frozen:
            for connection in self.routes.values():
                if connection.is_open:
                    self.world.network.lose(connection)

    def went_on(self) -> None:
        for peer in self.world.peers():
            self.world.network.try_again(peer)


class Peer(Actor):
    """A process with a connection to the broker."""

    connection: Connection

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.incarnation = world.new_id(name)
        self.socket = 0
        self.cut_up = self.cut_down = False
        self.cut_until = 0.0
        world.network.connect(self)

    @property
    def is_cut(self) -> bool:
        return self.cut_up or self.cut_down

    def is_calm_since(self, instant: float) -> bool:
        return super().is_calm_since(instant) and not self.is_cut

    def is_heard(self, connection: Connection) -> bool:
        """What waits in a socket that was closed is gone with it."""
        return connection.socket == self.socket

    def send(self, message: Message) -> None:
        if not self.springs(message):
            self.world.told_message(self.name, message, self.connection)
            self.world.network.to_broker(self.connection, message)

    def reconnect(self) -> None:
        self.socket += 1
        self.connection.is_open = False
        self.world.network.connect(self)

    def end(self) -> None:
        super().end()
        self.connection.is_open = False

    def break_connections(self) -> None:
        if self.alive and self.frozen:
            self.world.network.lose(self.connection)

    def went_on(self) -> None:
        self.world.network.try_again(self)


class WorkerActor(Peer):
    timer_fired = SessionTimer()

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.core = self.session = Session(
            worker_id=name,
            incarnation=self.incarnation,
            host=f"host-{name}",
            timing=world.timing,
            limits=world.limits,
            started_at=self.reading(),
        )
        self.engine: Engine | None = None
        self.is_engine_frozen = False
        self.runs = 0
        self.is_leaving = False
        self.exited: worker_actions.Exit | None = None

    @property
    def running(self) -> bytes | None:
        """The execution that its engine draws."""
        job = None if self.engine is None else self.engine.job
        return None if job is None else job.execution_id

    def is_encoding(self, execution_id: bytes) -> bool:
        """Its image is drawn, and the PNG not there yet."""
        return execution_id in self.session.encoding

    @property
    def is_free(self) -> bool:
        """Its engine is ready and does nothing, and it takes jobs."""
        ready = self.engine is not None and self.engine.alive and self.engine.ready
        return ready and not self.is_leaving and isinstance(self.session.slot, Free)

    def event_of(self, _connection: Connection, message: Message) -> object:
        self.world.checker.worker_received(self, message)
        return ToSession(message=message)  # type: ignore[arg-type]

    def perform(self, action: worker_actions.Action) -> object | None:
        match action:
            case worker_actions.SendToBroker(message=message):
                self.world.checker.worker_sends(self, message)
                self.send(message)
            case worker_actions.ReconnectToBroker():
                self.reconnect()
            case worker_actions.Exit():
                self.world.tell(self.name, f"exits with {action.code}: {action.reason}")
                self.exited = action
                self.end()
                self.world.worker_exited(self)
            case Note():
                self.world.noted(self.name, action)
            case _:
                self._drive(action)
        return None

    def _drive(
        self,
        action: (
            worker_actions.StartEngine
            | worker_actions.KillEngine
            | worker_actions.RunJob
            | worker_actions.CancelJob
        ),
    ) -> None:
        """What the session wants of its engine process, dead or alive."""
        match action, self.engine:
            case worker_actions.StartEngine(child=child), _:
                self.engine = Engine(self, child)
            case worker_actions.KillEngine(), Engine() as engine:
                engine.die("killed by SIGKILL")
            case worker_actions.RunJob(job=job), Engine() as engine:
                self.world.checker.begun(self, job)
                self.runs += 1
                engine.run(job)
            case worker_actions.CancelJob(execution_id=execution_id), Engine() as engine:
                engine.cancel(execution_id)
            case _:
                raise InvariantBroken(CORES, f"{self.name} has no engine for {action}")

    def end(self) -> None:
        super().end()
        if self.engine is not None:
            self.engine.alive, self.engine.job = False, None

    def crash_engine(self, reason: str = "killed by SIGSEGV") -> None:
        if self.engine is not None and self.engine.alive:
            self.world.tell(self.name, f"its engine is {reason}")
            self.engine.die(reason)

    def drain(self) -> None:
        self.world.tell(self.name, "is told to end")
        self.is_leaving = True
        self.tell(WorkerDrains())

    def freeze(self, duration_s: float, *, breaks: bool = False, engine_too: bool = True) -> None:
        self.is_engine_frozen = self.is_engine_frozen or engine_too
        super().freeze(duration_s, breaks=breaks)

    def went_on(self) -> None:
        super().went_on()
        self.is_engine_frozen = False
        if self.engine is not None:
            self.engine.thaw()


class FrontendActor(Peer):
    timer_fired = DeskTimer()

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.core = self.desk = JobDesk(
            frontend_id=name, incarnation=self.incarnation, timing=world.timing, started_at=self.reading()
        )
        self.calls: dict[bytes, Call] = {}
        self.reports = 0
        self.is_draining = False
        self.lost_at = -NEVER
        """When a broker last gave it up."""

    @property
    def is_open(self) -> bool:
        """A client would choose it."""
        return self.alive and not self.is_draining

    def event_of(self, _connection: Connection, message: Message) -> object:
        self.world.checker.desk_received(self, message)
        return ToDesk(message=message)  # type: ignore[arg-type]

    def perform(self, action: Any) -> object | None:
        match action:
            case FrontendSends(message=message):
                self.reports += isinstance(message, FrontendReport)
                self.send(message)
            case FrontendReconnects():
                self.reconnect()
            case EndJob(job_id=job_id, end=end):
                self.world.checker.answered(self, self.calls[job_id], end)
            case SnapshotArrived():
                pass
            case Note():
                self.world.noted(self.name, action)
            case _:
                assert_never(action)
        return None

    def open(self, call: Call) -> None:
        """An RPC has come in. A frozen frontend reads it later, with the time that is left then."""
        if not self.alive:
            return
        if self.frozen:
            self.world.after(max(0.01, self.thaw_at - self.world.now + 0.001), self.open, call)
            return
        left_s = call.deadline_at - self.world.now
        if call.left or left_s <= 0:
            if not call.left:
                self.world.checker.left(call, "left")
            return
        self.calls[call.job_id] = call
        call.answer_by = self.reading() + left_s
        self.world.checker.opened(call)
        wish = call.wish
        self.tell(
            JobOpened(
                job_id=call.job_id,
                key_fingerprint=wish.key,
                job=wish.job,
                time_remaining_s=left_s,
                key_job_limit=wish.key_limit,
                key_queue_share=wish.queue_share,
                idempotency_hash=wish.idempotency_hash,
                detach=wish.detach,
                job_time_s=DETACHED_S if wish.detach else None,
            )
        )

    def leave(self, call: Call) -> None:
        """Its client has gone."""
        if call.is_open:
            self.world.tell(self.name, f"the client of {self.world.short(call.job_id)} leaves")
            self.world.checker.left(call, "left")
            if call.job_id in self.calls:
                self.tell(WaiterLeft(job_id=call.job_id))

    def _step(self, event: object) -> None:
        if isinstance(event, WaiterLeft):
            self.calls[event.job_id].is_left_known = True
        super()._step(event)

    def end(self) -> None:
        """Its clients see their connections end."""
        super().end()
        for call in list(self.calls.values()):
            if call.is_open:
                self.world.checker.left(call, "frontend gone", is_abandoned=True)
            else:
                self.world.checker.frontend_gone(call)

    def drain(self) -> None:
        """As its shell does: no new calls, and after a while those that are open are given up."""
        self.world.tell(self.name, "is told to end")
        self.is_draining = True
        self.tell(DeskDrains())
        self.world.after(self.world.rng.uniform(0.5, 8.0), self._leave)

    def _leave(self) -> None:
        if self.frozen:
            self.world.after(0.5, self._leave)
        elif self.alive:
            self.tell(LeaveRequested())
            if self.alive:
                self.end()
