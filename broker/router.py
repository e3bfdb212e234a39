"""The broker's shell: two ROUTER sockets and one timer. It decides nothing."""

import asyncio
import contextlib
import dataclasses
import errno
from collections.abc import Callable
from functools import partial
from typing import Final, assert_never

import structlog
import zmq

from broker.actions import Action, Emptied, SendToFrontend, SendToWorker, TracedJobMoved
from broker.authenticator import Authenticator
from broker.core import Broker
from broker.events import (
    DrainRequested,
    Event,
    FromFrontend,
    FromWorker,
    FrontendUnreachable,
    HeardUntil,
    TimerFired,
    WorkerUnreachable,
)
from broker.gatekeeper import Gatekeeper, RouteGuard
from broker.ipc_path import why_not_bindable
from broker.job_spans import JobSpans
from broker.settings import BrokerSettings
from broker.status_text import status_text
from broker.turned_away import TurnedAway
from proto.actor import Mailbox
from proto.codec import (
    MAX_HEADER_BYTES,
    SLACK_BYTES,
    VERSION,
    NotForThisRole,
    ProtocolViolation,
    ViolationKind,
    decode,
    encode,
    is_report,
)
from proto.failures import RefusalReason
from proto.handshakes import HandshakeFailure
from proto.identifiers import new_identifier
from proto.logs import write_note
from proto.messages import (
    MAX_IMAGE_BYTES,
    Body,
    FrontendReport,
    Leave,
    Message,
    Outcome,
    Refuse,
    Snapshot,
    SnapshotRequest,
    Submit,
    WorkerReport,
)
from proto.notes import Note
from proto.service_watch import ServiceWatch
from proto.sockets import LoopSocket, SendResult, close_context
from proto.violations import ViolationLog

FAREWELL_S: Final = 0.3
"""For the last views to leave a broker that ends."""

log = structlog.get_logger()


class CannotBind(Exception):
    """An endpoint cannot be had. The text names it, and says why."""


class Router:
    """A bound broker. To be made, used and closed on one event loop."""

    def __init__(
        self,
        settings: BrokerSettings,
        gatekeeper: Gatekeeper | None = None,
        spans: JobSpans | None = None,
    ) -> None:
        """Encrypted and closed to strangers if there is a `gatekeeper`; jobs are traced with `spans`."""
        core = Broker(
            broker_id=settings.broker_id,
            epoch=new_identifier(),
            new_execution_id=new_identifier,
            timing=settings.timing,
            queue_limit=settings.queue_limit,
            is_first=settings.is_first,
        )
        self._core = core
        self._mailbox: Mailbox[Event, Action] = Mailbox(core, TimerFired(), self._perform)
        self._violations = {role: ViolationLog(role) for role in ("worker", "frontend")}
        self._dropped = 0
        self._emptied = asyncio.Event()
        self._spans = spans
        self._heard_until: dict[str, float | None] = {}
        """By the role of a socket that has more than it can hand over: until when it has."""
        self._gatekeeper = gatekeeper
        self._turned_away = TurnedAway() if gatekeeper is None else gatekeeper.turned_away
        self._authenticator = None if gatekeeper is None else _authenticator(gatekeeper)
        self._workers = self._socket("worker", MAX_IMAGE_BYTES + SLACK_BYTES, self._from_worker)
        self._frontends = self._socket("frontend", MAX_HEADER_BYTES, self._from_frontend)
        self._bind(self._workers, "workers_endpoint", settings.workers_endpoint)
        self._bind(self._frontends, "frontends_endpoint", settings.frontends_endpoint)
        self._mailbox.tell(TimerFired())  # Its life begins.

    @property
    def epoch(self) -> bytes:
        return self._core.state.epoch

    @property
    def status(self) -> str:
        """One line for people."""
        return status_text(self._core.state)

    @property
    def is_late(self) -> bool:
        return self._mailbox.is_late()

    async def drain(self, limit_s: float = 0.0) -> None:
        """Say that the broker ends, let its jobs end for so long, and give the last words time to leave."""
        self._mailbox.tell(DrainRequested())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._emptied.wait()
        await asyncio.sleep(FAREWELL_S)

    def close(self) -> None:
        self._mailbox.close()
        if self._spans is not None:
            self._spans.close(asyncio.get_running_loop().time())
        self._workers.close()
        self._frontends.close()
        if self._authenticator is not None:
            self._authenticator.close()
        close_context()

    def _socket(
        self, role: str, max_message_bytes: int, on_frames: Callable[[list[Body]], None]
    ) -> LoopSocket:
        gatekeeper = self._gatekeeper

        def on_handshake_failure(failure: HandshakeFailure) -> None:
            self._turned_away.add_handshake(role, failure, encrypted=gatekeeper is not None)

        return LoopSocket(
            zmq.ROUTER,
            max_message_bytes,
            on_frames,
            curve=None if gatekeeper is None else gatekeeper.server(role),
            guard=None if gatekeeper is None else RouteGuard(gatekeeper, role),
            on_handshake_failure=on_handshake_failure,
            speaker=speaker,
            on_heard_until=partial(self._on_heard_until, role),
        )

    def _on_heard_until(self, role: str, instant: float | None) -> None:
        self._heard_until[role] = instant
        behind = [each for each in self._heard_until.values() if each is not None]
        self._mailbox.tell(HeardUntil(instant=min(behind, default=None)))

    def _bind(self, socket: LoopSocket, setting: str, endpoint: str) -> None:
        if (obstacle := why_not_bindable(endpoint)) is not None:
            self.close()
            raise CannotBind(f"{setting}: cannot listen on {endpoint}: {obstacle}")
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            # The error's own text repeats the address; libzmq looks for a network interface of such a name.
            unknown = "this host has no such address or network interface"
            reason = unknown if error.errno == errno.ENODEV else zmq.strerror(error.errno or 0)
            raise CannotBind(f"{setting}: cannot listen on {endpoint}: {reason}") from error

    # --- Between the core and the sockets ------------------------------------------------------

    def _from_worker(self, frames: list[Body]) -> None:
        route, message = self._decoded(frames, "worker", self._workers)
        match message:
            case None:
                pass
            case WorkerReport() | Outcome() | Refuse() | Leave():
                self._mailbox.tell(FromWorker(route=route, message=message))
            case _:
                self._reject("worker", route, message)

    def _from_frontend(self, frames: list[Body]) -> None:
        route, message = self._decoded(frames, "frontend", self._frontends)
        match message:
            case None:
                pass
            case FrontendReport() | Submit() | SnapshotRequest() | Leave():
                self._mailbox.tell(FromFrontend(route=route, message=message))
            case _:
                self._reject("frontend", route, message)

    def _decoded(self, frames: list[Body], role: str, socket: LoopSocket) -> tuple[bytes, Message | None]:
        route = bytes(frames[0])
        try:
            return route, decode(frames[1:])
        except ProtocolViolation as violation:
            self._violations[role].add(route, violation, asyncio.get_running_loop().time())
            if violation.kind is ViolationKind.VERSION:
                refuse = Refuse(
                    reason=RefusalReason.VERSION_MISMATCH, detail=f"this broker speaks version {VERSION}"
                )
                socket.send([route, *encode(refuse)])
            return route, None

    def _reject(self, role: str, route: bytes, message: Message) -> None:
        violation = NotForThisRole(message, f"a {role}'s to send")
        self._violations[role].add(route, violation, asyncio.get_running_loop().time())

    def _perform(self, action: Action) -> None:
        match action:
            case SendToWorker(route=route, message=message):
                result = self._workers.send([route, *encode(message)])
                if result is SendResult.UNREACHABLE:
                    self._mailbox.tell(WorkerUnreachable(route=route))
                self._count(result, message)
            case SendToFrontend(route=route, message=message):
                if isinstance(message, Snapshot):
                    message = dataclasses.replace(message, shed={**message.shed, **self._shed()})
                result = self._frontends.send([route, *encode(message)])
                if result is SendResult.UNREACHABLE:
                    self._mailbox.tell(FrontendUnreachable(route=route))
                self._count(result, message)
            case TracedJobMoved():
                if self._spans is not None:
                    self._spans.moved(action)
            case Emptied():
                self._emptied.set()
            case Note():
                write_note(action if self._spans is None else self._spans.named(action))
            case _:
                assert_never(action)

    def _shed(self) -> dict[str, int]:
        """What never reached the core, or did not get away."""
        counts = {
            **{f"{role}_violations": log.total for role, log in self._violations.items()},
            "turned_away": self._turned_away.total,
            "unread_reports": self._workers.superseded + self._frontends.superseded,
            "unsent_messages": self._dropped,
            "unsent_spans": 0 if self._spans is None else self._spans.dropped,
        }
        return {kind: n for kind, n in counts.items() if n}

    def _count(self, result: SendResult, message: Message) -> None:
        if result is not SendResult.SENT:
            self._dropped += 1
            log.debug("message not sent", kind=type(message).__name__, why=result.name, dropped=self._dropped)


def speaker(frames: list[zmq.Frame]) -> tuple[bytes, bool]:
    """The route by which a message has come, and whether it is a report."""
    return frames[0].bytes, len(frames) > 1 and is_report(frames[1].bytes)


def _authenticator(gatekeeper: Gatekeeper) -> Authenticator:
    try:
        return Authenticator(gatekeeper.welcomes)
    except zmq.ZMQError as error:
        raise CannotBind(f"no authenticator of this broker: {zmq.strerror(error.errno or 0)}") from error


async def serve(
    settings: BrokerSettings,
    stop: asyncio.Event,
    gatekeeper: Gatekeeper | None = None,
    spans: JobSpans | None = None,
) -> None:
    """Run until `stop` is set, then say good-bye.

    Raises:
        CannotBind: an endpoint is taken or cannot be had.
    """
    with contextlib.ExitStack() as cleanup:
        router = cleanup.enter_context(contextlib.closing(Router(settings, gatekeeper, spans)))
        log.info(
            "broker listens",
            broker_id=settings.broker_id,
            epoch=router.epoch.hex(),
            workers=settings.workers_endpoint,
            frontends=settings.frontends_endpoint,
            public_key=None if gatekeeper is None else gatekeeper.public_key,
        )
        service = ServiceWatch(status=lambda: router.status, is_well=lambda: not router.is_late)
        cleanup.callback(service.close)
        service.ready()
        await stop.wait()
        service.stopping()
        await router.drain(settings.drain_s)
    log.info("broker stopped")
