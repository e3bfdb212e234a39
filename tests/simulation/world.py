"""All three cores in one deterministic world: a seeded network, simulated engines, clients, and faults.

Nothing here uses a socket, a process or the clock: time jumps from one due event to the next. Every
message goes through the codec. Every step is followed by every core's own invariants, and by the world's.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

import gpu_worker.actions as worker_actions
from broker.actions import SendToFrontend, SendToWorker
from broker.core import Broker
from broker.events import (
    FromFrontend,
    FromWorker,
    FrontendUnreachable,
    WorkerUnreachable,
)
from broker.events import TimerFired as BrokerTimer
from broker.jobs import MAX_ATTEMPTS
from frontend.actions import EndJob, ImageDelivered, JobEnd, JobGivenUp, JobRefused, SnapshotArrived
from frontend.actions import ReconnectToBroker as FrontendReconnects
from frontend.actions import SendToBroker as FrontendSends
from frontend.events import FromBroker as ToDesk
from frontend.events import JobOpened, WaiterLeft
from frontend.events import TimerFired as DeskTimer
from frontend.job_desk import JobDesk
from frontend.validation import ValidJob
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    DrainRequested,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
    TimerFired,
)
from gpu_worker.events import FromBroker as ToSession
from gpu_worker.limits import SessionLimits
from gpu_worker.session import Session
from proto.codec import decode, encode
from proto.failures import FailureCode
from proto.messages import FrontendReport, ImageParameters, JobPhase, Message, ModelCard, Outcome, Start
from proto.notes import Note
from proto.timing import Timing

LATE_S = 1.0
"""How long after its deadline an RPC may end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What happens to a message. Times in seconds."""

    delay_s: float = 0.001
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    """With jitter, messages also overtake each other."""


PERFECT = Network()
LOSSY = Network(jitter_s=0.3, loss=0.1, duplicates=0.1)


def picture_of(job: EngineJob) -> bytes:
    """What a simulated engine draws: all that a checker needs to know whose image it is."""
    parts = (
        job.prompt,
        job.parameters.seed,
        job.parameters.width,
        job.parameters.height,
        job.execution_id.hex(),
    )
    return "|".join(str(part) for part in parts).encode()


@dataclass(slots=True)
class Connection:
    """One life of a peer's socket."""

    route: bytes
    alive: bool = True


class SimulatedBroker:
    def __init__(self, world: "World", epoch: bytes) -> None:
        self.world = world
        self.core = Broker(
            broker_id="broker",
            epoch=epoch,
            new_execution_id=world.new_id,
            timing=world.timing,
            queue_limit=world.queue_limit,
        )
        self.connections: dict[bytes, tuple[Connection, Callable[[Message], None]]] = {}
        self.started: dict[bytes, bytes] = {}
        """The latest execution of each job."""
        self.alive = True

    def tell(self, event: object) -> None:
        if not self.alive:
            return
        waiting = [event]
        while waiting:
            for action in self.core.handle(waiting.pop(0), self.world.now):  # type: ignore[arg-type]
                match action:
                    case SendToWorker(route=route, message=message):
                        if isinstance(message, Start):
                            self.started[message.claim.job_id] = message.execution_id
                        if not self.send(route, message):
                            waiting.append(WorkerUnreachable(route=route))
                    case SendToFrontend(route=route, message=message):
                        self.check_fence(message)
                        if not self.send(route, message):
                            waiting.append(FrontendUnreachable(route=route))
                    case Note():
                        self.world.write("broker", action)
        self.world.wake(self.core.next_deadline(), lambda: self.tell(BrokerTimer()), self)

    def check_fence(self, message: Message) -> None:
        if isinstance(message, Outcome) and message.image is not None:
            job = self.core.state.jobs.get(message.job_id)
            assert job is not None, "an image of a job that nobody waits for"
            assert self.started[message.job_id] == message.execution_id, "an image of a fenced execution"

    def send(self, route: bytes, message: Message) -> bool:
        connection, receive = self.connections.get(route, (None, None))
        if connection is None or receive is None or not connection.alive:
            return False
        self.world.deliver(message, lambda sent: receive(sent) if connection.alive else None)
        return True


class Peer:
    """A simulated process with a connection to the broker."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        """A frozen process keeps its connection, and reads what has come when it goes on."""
        self.connection = Connection(world.new_id())

    def connect(self) -> None:
        self.connection.alive = False
        self.connection = Connection(self.world.new_id())

    def send(self, message: Message) -> None:
        broker, connection = self.world.broker, self.connection
        if not broker.alive:
            return
        broker.connections[connection.route] = (connection, self.receive)

        def arrive(sent: Message) -> None:
            if broker.alive:
                broker.tell(self.wrapped(connection.route, sent))

        self.world.deliver(message, arrive)

    def wrapped(self, route: bytes, message: Message) -> object:
        raise NotImplementedError

    def receive(self, message: Message) -> None:
        raise NotImplementedError

    def freeze(self, duration_s: float) -> None:
        """Stop the process with all that it runs, as SIGSTOP does."""
        self.frozen_until = self.world.now + duration_s

    def is_awake_for(self, action: Callable[[], object]) -> bool:
        """Whether the process lives and runs; if it is frozen, the action is tried again later."""
        if self.alive and self.world.now < self.frozen_until:
            self.world.after(min(0.1, self.frozen_until - self.world.now), action)
            return False
        return self.alive

    def thawed_for(self, duration_s: float) -> float:
        """When it will have run for so long since it was last frozen."""
        return self.frozen_until + duration_s

    def kill(self) -> None:
        self.alive = False
        self.connection.alive = False


class SimulatedWorker(Peer):
    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.session = Session(
            worker_id=name,
            incarnation=world.new_id(),
            host=f"host-{name}",
            timing=world.timing,
            limits=SessionLimits(held_age_max_s=120, step_s=10, text_s=10, decode_s=10),
            started_at=world.now,
        )
        self.child = 0
        self.running: bytes | None = None
        self.cancelled: set[bytes] = set()
        self.runs = 0
        self.exited: worker_actions.Exit | None = None

    def wrapped(self, route: bytes, message: Message) -> object:
        return FromWorker(route=route, message=message)  # type: ignore[arg-type]

    def receive(self, message: Message) -> None:
        self.tell(ToSession(message=message))  # type: ignore[arg-type]

    def tell(self, event: object) -> None:
        if not self.is_awake_for(lambda: self.tell(event)):
            return
        for action in self.session.handle(event, self.world.now):  # type: ignore[arg-type]
            self.perform(action)
        self.world.wake(self.session.next_deadline(), lambda: self.tell(TimerFired()), self)

    def perform(self, action: worker_actions.Action) -> None:
        match action:
            case worker_actions.SendToBroker(message=message):
                self.send(message)
            case worker_actions.ReconnectToBroker():
                self.connect()
            case worker_actions.StartEngine(child=child):
                self.start_engine(child)
            case worker_actions.KillEngine(child=child):
                self.end_engine(child, "killed by SIGKILL")
            case worker_actions.RunJob(child=child, job=job):
                self.run(child, job)
            case worker_actions.CancelJob(execution_id=execution_id):
                self.cancelled.add(execution_id)
            case worker_actions.Exit():
                self.exited = action
                self.kill()
            case Note():
                self.world.write(self.name, action)
            case _:
                assert_never(action)

    def from_engine(self, child: int, event: object) -> None:
        if child == self.child:
            self.tell(event)

    def start_engine(self, child: int) -> None:
        self.child, self.running = child, None
        card = ModelCard(engine="simulated", name="simulated", precision="none", device="none")
        loading = EngineLoading(child=child, activity="weights", percent=50)
        self.world.after(self.world.load_s / 2, lambda: self.from_engine(child, loading))
        ready = EngineReady(child=child, model=card)
        self.world.after(self.world.load_s, lambda: self.from_engine(child, ready))

    def end_engine(self, child: int, reason: str) -> None:
        if child != self.child or not self.alive:
            return
        self.child, self.running = -child, None
        self.world.after(0.01, lambda: self.tell(EngineExited(child=child, reason=reason)))

    def crash_engine(self) -> None:
        self.end_engine(self.child, "killed by SIGSEGV")

    def run(self, child: int, job: EngineJob) -> None:
        assert self.running is None, f"{self.name}: two jobs in one engine"
        assert job.execution_id not in self.world.begun, "an execution begun twice"
        self.world.begun.add(job.execution_id)
        self.running = job.execution_id
        self.runs += 1
        self.world.executions[job.job_id] += 1
        most = MAX_ATTEMPTS + self.world.broker_restarts
        assert self.world.executions[job.job_id] <= most, "too many attempts"
        self.step(child, job, 0)

    def step(self, child: int, job: EngineJob, step: int) -> None:
        if child != self.child or self.running != job.execution_id:
            return
        if self.world.now < self.frozen_until:
            self.world.after(
                min(0.1, self.frozen_until - self.world.now), lambda: self.step(child, job, step)
            )
            return
        if job.execution_id in self.cancelled:
            self.running = None
            stopped = EngineFailed(
                child=child, execution_id=job.execution_id, code=FailureCode.CANCELLED, detail=""
            )
            self.from_engine(child, stopped)
            return
        if step == job.parameters.steps:
            self.running = None
            done = EngineFinished(
                child=child,
                execution_id=job.execution_id,
                png=picture_of(job),
                inference_time_s=self.world.step_s * step,
            )
            self.from_engine(child, done)
            return
        progress = EngineProgress(child=child, execution_id=job.execution_id, phase=JobPhase.STEP, step=step)
        self.from_engine(child, progress)
        self.world.after(self.world.step_s, lambda: self.step(child, job, step + 1))

    def drain(self) -> None:
        self.tell(DrainRequested())


@dataclass(slots=True)
class Call:
    """One RPC of a client."""

    job_id: bytes
    key: str
    job: ValidJob
    opened_at: float
    deadline: float
    end: JobEnd | None = None
    ended_at: float | None = None
    left: bool = False


class SimulatedFrontend(Peer):
    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.desk = JobDesk(
            frontend_id=name, incarnation=world.new_id(), timing=world.timing, started_at=world.now
        )
        self.calls: dict[bytes, Call] = {}
        self.reports = 0

    def wrapped(self, route: bytes, message: Message) -> object:
        return FromFrontend(route=route, message=message)  # type: ignore[arg-type]

    def receive(self, message: Message) -> None:
        self.tell(ToDesk(message=message))  # type: ignore[arg-type]

    def tell(self, event: object) -> None:
        if not self.is_awake_for(lambda: self.tell(event)):
            return
        for action in self.desk.handle(event, self.world.now):  # type: ignore[arg-type]
            match action:
                case FrontendSends(message=message):
                    self.reports += isinstance(message, FrontendReport)
                    self.send(message)
                case FrontendReconnects():
                    self.connect()
                case EndJob(job_id=job_id, end=end):
                    call = self.calls[job_id]
                    assert call.end is None, "an RPC answered twice"
                    assert not call.left, "an RPC answered after it had left"
                    call.end, call.ended_at = end, self.world.now
                    self.world.check_end(call, self)
                case SnapshotArrived():
                    pass
                case Note():
                    self.world.write(self.name, action)
                case _:
                    assert_never(action)
        self.world.wake(self.desk.next_deadline(), lambda: self.tell(DeskTimer()), self)

    def call(self, key: str, prompt: str, *, steps: int = 4, seed: int = 0, deadline_s: float = 60.0) -> Call:
        parameters = ImageParameters(height=16, width=16, steps=steps, guidance=3.5, seed=seed)
        digest = self.world.new_id()
        job = ValidJob(prompt=prompt, parameters=parameters, digest=digest)
        call = Call(self.world.new_id(), key, job, self.world.now, self.world.now + deadline_s)
        self.calls[call.job_id] = call
        self.world.calls.append(call)
        opened = JobOpened(job_id=call.job_id, key_fingerprint=key, job=job, time_remaining_s=deadline_s)
        self.tell(opened)
        return call

    def kill(self) -> None:
        """Its clients see their connections end."""
        super().kill()
        for call in self.calls.values():
            call.left = call.left or call.end is None

    def leave(self, call: Call) -> None:
        if not self.is_awake_for(lambda: self.leave(call)):
            return
        if call.end is None and not call.left:
            call.left = True
            self.tell(WaiterLeft(job_id=call.job_id))


@dataclass(slots=True, kw_only=True)
class World:
    seed: int = 0
    network: Network = PERFECT
    timing: Timing = field(default_factory=Timing)
    queue_limit: int = 0
    load_s: float = 0.5
    step_s: float = 0.25
    now: float = 0.0
    broker: SimulatedBroker = field(init=False)
    workers: list[SimulatedWorker] = field(default_factory=list)
    frontends: list[SimulatedFrontend] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    executions: Counter[bytes] = field(default_factory=Counter)
    """RunJob actions by job."""
    broker_restarts: int = 0
    begun: set[bytes] = field(default_factory=set)
    """Executions that an engine was told to run."""
    transcript: list[str] = field(default_factory=list)
    steps: int = 0
    rng: random.Random = field(init=False)
    _due: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _count: int = 0
    _timers: dict[object, int] = field(default_factory=dict)
    """How often each owner has armed its timer."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.broker = SimulatedBroker(self, self.new_id())

    def new_id(self) -> bytes:
        return self.rng.randbytes(16)

    # --- Building ------------------------------------------------------------------------------

    def add_worker(self, name: str) -> SimulatedWorker:
        worker = SimulatedWorker(self, name)
        self.workers.append(worker)
        worker.tell(TimerFired())
        return worker

    def add_frontend(self, name: str) -> SimulatedFrontend:
        frontend = SimulatedFrontend(self, name)
        self.frontends.append(frontend)
        frontend.tell(DeskTimer())
        return frontend

    def restart_broker(self, away_s: float = 0.5) -> None:
        self.broker_restarts += 1
        self.broker.alive = False
        for peer in (*self.workers, *self.frontends):
            peer.connection.alive = False

        def start() -> None:
            self.broker = SimulatedBroker(self, self.new_id())
            for peer in (*self.workers, *self.frontends):
                if peer.alive:  # libzmq connects again by itself
                    peer.connection = Connection(self.new_id())

        self.after(away_s, start)

    # --- Time ----------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay_s, self._count, action))

    def wake(self, deadline: float | None, action: Callable[[], None], owner: object) -> None:
        """Arm the owner's one timer; an earlier one is cancelled, as `proto.actor.Mailbox` does."""
        self._timers[owner] = timer = self._timers.get(owner, 0) + 1
        if deadline is None:
            return
        assert deadline > self.now, "a deadline that has passed: a timer that never rests"
        self.after(deadline - self.now, lambda: action() if self._timers[owner] == timer else None)

    def deliver(self, message: Message, receive: Callable[[Message], None]) -> None:
        """Over the network, through the codec."""
        sent = decode(encode(message))
        copies = 1 if self.rng.random() >= self.network.loss else 0
        copies += self.rng.random() < self.network.duplicates
        for _ in range(copies):
            delay_s = self.network.delay_s + self.rng.random() * self.network.jitter_s
            self.after(delay_s, lambda: receive(sent))

    def run_for(self, duration_s: float) -> None:
        self.run_until(lambda: False, duration_s, must=False)

    def run_until(self, condition: Callable[[], bool], limit_s: float, *, must: bool = True) -> None:
        """Go on until the condition holds; fails after `limit_s` of the world's time if it must."""
        end = self.now + limit_s
        while not condition():
            if not self._due or self._due[0][0] > end:
                self.now = end
                assert not must, f"not within {limit_s} s\n{self.story()}"
                return
            self.now, _, action = heapq.heappop(self._due)
            action()
            self.steps += 1
            self.check()

    # --- Checks --------------------------------------------------------------------------------

    def check(self) -> None:
        if self.broker.alive:
            self.broker.core.check_invariants()
        for worker in self.workers:
            worker.session.check_invariants()
        for frontend in self.frontends:
            frontend.desk.check_invariants()
            if frontend.alive and self.now >= frontend.thawed_for(LATE_S):
                for call in frontend.calls.values():
                    over = call.end is not None or call.left
                    assert over or self.now <= call.deadline + LATE_S, f"a call hangs\n{self.story()}"

    def check_end(self, call: Call, frontend: SimulatedFrontend) -> None:
        assert call.ended_at is not None
        in_time = call.deadline + LATE_S
        assert call.ended_at <= max(in_time, frontend.thawed_for(LATE_S)), "an RPC ended late"
        match call.end:
            case ImageDelivered(png=png, seed=seed):
                prompt, drawn_seed, width, height, _execution = bytes(png).decode().split("|")
                asked = (call.job.prompt, call.job.parameters.seed, call.job.parameters.width)
                assert (prompt, int(drawn_seed), int(width)) == asked, "somebody else's image"
                assert seed == call.job.parameters.seed
                assert int(height) == call.job.parameters.height
            case JobRefused() | JobGivenUp():
                pass
            case _:
                raise AssertionError("an end of no known kind")

    def outcomes(self) -> Counter[str]:
        """How the calls ended."""
        counted: Counter[str] = Counter()
        for call in self.calls:
            match call.end:
                case ImageDelivered():
                    counted["image"] += 1
                case JobRefused(reason=reason):
                    counted[reason.value] += 1
                case JobGivenUp(code=code):
                    counted[code.value] += 1
                case None:
                    counted["left" if call.left else "open"] += 1
        return counted

    def write(self, who: str, note: Note) -> None:
        fields = " ".join(
            f"{key}={value.hex()[:6] if isinstance(value, bytes) else value}"
            for key, value in note.fields.items()
        )
        self.transcript.append(f"{self.now:9.3f} {who:10} {note.event} {fields}")

    def story(self, lines: int = 60) -> str:
        return f"seed {self.seed}, t = {self.now:.3f}\n" + "\n".join(self.transcript[-lines:])
