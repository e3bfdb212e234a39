"""The session's shell: a DEALER for each broker, an engine process, a timer, readings. It decides nothing."""

import asyncio
import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, assert_never

import structlog

from gpu_worker.actions import (
    Action,
    CancelJob,
    Exit,
    KillEngine,
    ReconnectToBroker,
    RunJob,
    SendToBroker,
    StartEngine,
)
from gpu_worker.engine_process import EngineProcess
from gpu_worker.events import DrainRequested, EngineEvent, Event, FromBroker, ReadingsTaken, TimerFired
from gpu_worker.execution_spans import ExecutionSpans
from gpu_worker.limits import SessionLimits
from gpu_worker.readings_thread import ReadingsThread
from gpu_worker.session import Session
from gpu_worker.status_text import status_text
from proto.actor import Mailbox
from proto.broker_link import BrokerLink
from proto.codec import MAX_HEADER_BYTES, NotForThisRole
from proto.identifiers import new_identifier
from proto.keyring import Keyring
from proto.logs import write_note
from proto.messages import Message, Outcome, Readings, Refuse, Start, WorkerView
from proto.notes import Note
from proto.service_watch import ServiceWatch
from proto.sockets import close_context
from proto.timing import Timing

GONE_LIMIT_S: Final = 5.0
"""For a killed engine process to end. One that hangs in a driver call may take longer."""

log = structlog.get_logger()

MakeEngine = Callable[[int, Callable[[EngineEvent], None]], EngineProcess]
"""Makes engine process number n, which tells its events to the callback."""


class WorkerShell:
    """A worker on the running event loop, from `run` to the end of its session."""

    def __init__(
        self,
        *,
        worker_id: str,
        broker_endpoints: Sequence[str],
        timing: Timing,
        limits: SessionLimits,
        make_engine: MakeEngine,
        take_readings: Callable[[], Readings],
        keyring: Keyring,
        spans: ExecutionSpans | None = None,
    ) -> None:
        """Jobs are traced with `spans`."""
        self._loop = asyncio.get_running_loop()
        self._spans = spans
        self._make_engine = make_engine
        self._endpoints = broker_endpoints
        self._session = Session(
            worker_id=worker_id,
            incarnation=new_identifier(),
            host=platform.node()[:128] or "unknown",
            timing=timing,
            limits=limits,
            started_at=self._loop.time(),
            brokers=len(broker_endpoints),
        )
        self._mailbox: Mailbox[Event, Action] = Mailbox(self._session, TimerFired(), self._perform)
        self._service = ServiceWatch(
            status=lambda: status_text(self._session, self._loop.time()),
            is_well=lambda: not (self._mailbox.is_late() or self._session.is_stuck(self._loop.time())),
        )
        self._links = [
            BrokerLink(endpoint, MAX_HEADER_BYTES, partial(self._on_message, broker), keyring)
            for broker, endpoint in enumerate(broker_endpoints)
        ]
        self._readings = ReadingsThread(take_readings, self._on_readings, timing.heartbeat_interval_s)
        self._engine: EngineProcess | None = None
        self._engine_child = 0
        self._over: asyncio.Future[Exit] = self._loop.create_future()

    async def run(self) -> Exit:
        """Serve until the session is over, and leave no process behind."""
        self._service.start()
        self._mailbox.tell(TimerFired())
        self._readings.start()
        try:
            return await self._over
        finally:
            self._readings.stop()
            await self._close()

    def drain(self) -> None:
        """Finish what runs, then end; called again, end at once."""
        self._mailbox.tell(DrainRequested())
        self._service.stopping()

    async def _close(self) -> None:
        self._mailbox.close()
        if self._spans is not None:
            self._spans.close(self._loop.time())
        if self._engine is not None:
            self._engine.kill()
            try:
                async with asyncio.timeout(GONE_LIMIT_S):
                    await self._engine.wait_gone()
            except TimeoutError:
                log.error("engine process does not die", pid=self._engine.pid)
        for link in self._links:
            link.close()
        close_context()
        self._service.close()

    # --- Between the session and the world -----------------------------------------------------

    def _on_readings(self, readings: Readings) -> None:
        self._mailbox.tell(ReadingsTaken(readings=readings))

    def _on_engine_event(self, event: EngineEvent) -> None:
        if self._spans is not None:
            self._spans.told(event)
        self._mailbox.tell(event)
        if self._spans is not None:
            self._spans.settle(event, self._loop.time())
        if self._session.engine.model is not None:
            self._service.ready()

    def _on_message(self, broker: int, message: Message) -> None:
        match message:
            case WorkerView() | Start() | Refuse():
                self._mailbox.tell(FromBroker(broker=broker, message=message))
            case _:
                raise NotForThisRole(message, "for a worker")

    def _perform(self, action: Action) -> None:
        match action:
            case SendToBroker():
                self._send(action)
            case ReconnectToBroker(broker=broker):
                self._links[broker].reconnect()
            case StartEngine(child=child):
                self._engine_child = child
                self._engine = self._make_engine(child, self._on_engine_event)
                self._engine.start()
            case KillEngine(child=child):
                self._present_engine(child).kill()
            case RunJob():
                self._run(action)
            case CancelJob(child=child, execution_id=execution_id):
                self._present_engine(child).cancel(execution_id)
            case Exit():
                if not self._over.done():
                    self._over.set_result(action)
            case Note():
                note = action.with_endpoint(self._endpoints)
                write_note(note if self._spans is None else self._spans.named(note))
            case _:
                assert_never(action)

    def _send(self, action: SendToBroker) -> None:
        if self._spans is not None and isinstance(action.message, Outcome):
            self._spans.ended(action.message, self._loop.time())
        self._links[action.broker].send(action.message)

    def _run(self, action: RunJob) -> None:
        if self._spans is not None:
            self._spans.began(action, self._loop.time())
        self._present_engine(action.child).run(action.job)

    def _present_engine(self, child: int) -> EngineProcess:
        if self._engine is None or child != self._engine_child:
            raise RuntimeError(
                f"the session speaks of engine process {child}, present is {self._engine_child}"
            )
        return self._engine
