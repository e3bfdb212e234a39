"""The job desk's shell: a DEALER for each broker, a timer, a future for each open RPC. It decides nothing."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, assert_never

import structlog

from frontend.actions import Action, EndJob, JobEnd, ReconnectToBroker, SendToBroker, SnapshotArrived
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.events import (
    DrainRequested,
    Event,
    FromBroker,
    JobOpened,
    LeaveRequested,
    SnapshotWanted,
    TimerFired,
    WaiterLeft,
)
from frontend.job_desk import JobDesk
from frontend.settings import FrontendSettings
from proto.actor import Mailbox
from proto.broker_link import BrokerLink
from proto.codec import SLACK_BYTES, NotForThisRole
from proto.file_watch import keep_fresh
from proto.identifiers import new_identifier
from proto.keyring import Keyring
from proto.logs import write_note
from proto.messages import MAX_IMAGE_BYTES, FrontendView, Message, Outcome, Refuse, Snapshot
from proto.notes import Note
from proto.sockets import close_context

SNAPSHOT_LIMIT_S: Final = 1.0
"""How long a caller waits for a fresh picture before it gets the last one."""
READINESS_LOOK_S: Final = 0.25
"""How often silence is looked at: a broker that is gone sends nothing that would tell."""

log = structlog.get_logger()


class BrokerClient:
    """Implements `cluster.Cluster`."""

    def __init__(
        self, settings: FrontendSettings, on_readiness: Callable[[bool], None], keyring: Keyring | None = None
    ) -> None:
        self._endpoints = settings.broker_endpoints
        self._keyring = keyring or Keyring.empty()
        self._on_readiness = on_readiness
        self._log_prompts = settings.log_prompts
        self._loop = asyncio.get_running_loop()
        self._desk = JobDesk(
            frontend_id=settings.frontend_id,
            incarnation=new_identifier(),
            timing=settings.timing,
            started_at=self._loop.time(),
            max_open_jobs=settings.max_open_jobs,
            brokers=len(self._endpoints),
        )
        self._mailbox: Mailbox[Event, Action] = Mailbox(self._desk, TimerFired(), self._perform)
        self._links: list[BrokerLink] = []
        self._waiting: dict[bytes, asyncio.Future[JobEnd]] = {}
        self._pictures: dict[int, tuple[Snapshot, float]] = {}
        """By broker: the latest, and when it came."""
        self._pictures_wanted: asyncio.Future[None] | None = None
        self._unanswered: set[int] = set()
        """Brokers that were asked for a picture, and are waited for."""
        self._told_ready = False
        self._is_closed = False
        self._readiness_timer: asyncio.TimerHandle | None = None

    @property
    def ready_workers(self) -> int:
        return self._desk.ready_workers(self._loop.time())

    @property
    def broker_alive(self) -> bool:
        return self._desk.broker_alive(self._loop.time())

    @property
    def is_late(self) -> bool:
        return self._mailbox.is_late()

    async def start(self) -> None:
        self._links = [
            BrokerLink(
                endpoint, MAX_IMAGE_BYTES + SLACK_BYTES, partial(self._on_message, broker), self._keyring
            )
            for broker, endpoint in enumerate(self._endpoints)
        ]
        keep_fresh(self._keyring.files, self._keyring.reload)
        self._mailbox.tell(TimerFired())
        self._look_at_readiness()

    async def draw(self, opened: JobOpened) -> JobEnd:
        if self._log_prompts:
            log.info("prompt", prompt=opened.job.prompt)
        answer: asyncio.Future[JobEnd] = self._loop.create_future()
        self._waiting[opened.job_id] = answer
        self._mailbox.tell(opened)
        try:
            return await answer
        finally:
            if self._waiting.pop(opened.job_id, None) is not None:
                self._mailbox.tell(WaiterLeft(job_id=opened.job_id))

    async def service_picture(self) -> ServicePicture:
        if self.broker_alive:
            await self._ask_for_pictures()
        return ServicePicture(
            brokers=tuple(self._broker_picture(broker) for broker in range(len(self._endpoints))),
            own_refusals={reason.value: count for reason, count in self._desk.refusals.items()},
            own_shed=self._shed(),
        )

    def _broker_picture(self, broker: int) -> BrokerPicture:
        now = self._loop.time()
        contacts = self._desk.contacts
        contact = contacts[broker].contact
        snapshot, taken_at = self._pictures.get(broker, (None, now))
        if snapshot is not None and snapshot.epoch != contact.epoch and contacts.is_double(broker, now):
            snapshot = None  # Of an earlier life; of the present one another endpoint is asked.
        return BrokerPicture(
            broker_id=contact.broker_id,
            endpoint=self._endpoints[broker],
            standing=contacts.standing(broker, now),
            gets_calls=contacts.best(now) == broker and self.broker_alive,
            snapshot=snapshot,
            age_s=now - taken_at,
        )

    def _shed(self) -> dict[str, int]:
        counts = {
            "frontend_unsent_messages": sum(link.dropped for link in self._links),
            "frontend_violations": sum(link.violations for link in self._links),
        }
        return {kind: count for kind, count in counts.items() if count}

    async def _ask_for_pictures(self) -> None:
        """Until they have come, or for a short time: callers at the same time share one request."""
        if self._pictures_wanted is None:
            self._pictures_wanted = self._loop.create_future()
            self._unanswered = set(self._desk.contacts.heard(self._loop.time()))
            self._mailbox.tell(SnapshotWanted())
        wanted = self._pictures_wanted
        await asyncio.wait([wanted], timeout=SNAPSHOT_LIMIT_S)
        if self._pictures_wanted is wanted:
            self._pictures_wanted = None  # One may have been lost: the next caller asks again.

    def _picture_came(self, broker: int, snapshot: Snapshot) -> None:
        self._pictures[broker] = (snapshot, self._loop.time())
        self._unanswered.discard(broker)
        if self._pictures_wanted is not None and not self._unanswered:
            self._pictures_wanted.set_result(None)
            self._pictures_wanted = None

    def drain(self) -> None:
        self._mailbox.tell(DrainRequested())

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._readiness_timer is not None:
            self._readiness_timer.cancel()
        self._mailbox.tell(LeaveRequested())  # It stays open: the desk refuses those who come now.
        await asyncio.sleep(0)  # The socket looks once more after its last send.
        for link in self._links:
            link.close()
        if self._links:
            close_context()

    # --- Between the desk and the world --------------------------------------------------------

    def _on_message(self, broker: int, message: Message) -> None:
        match message:
            case FrontendView() | Outcome() | Refuse() | Snapshot():
                self._mailbox.tell(FromBroker(broker=broker, message=message))
            case _:
                raise NotForThisRole(message, "for a frontend")

    def _perform(self, action: Action) -> None:
        match action:
            case SendToBroker(broker=broker, message=message):
                if self._links:
                    self._links[broker].send(message)
            case ReconnectToBroker(broker=broker):
                if self._links:
                    self._links[broker].reconnect()
            case EndJob(job_id=job_id, end=end):
                answer = self._waiting.pop(job_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(end)
            case SnapshotArrived(broker=broker, snapshot=snapshot):
                self._picture_came(broker, snapshot)
            case Note():
                write_note(action.with_endpoint(self._endpoints))
            case _:
                assert_never(action)

    def _look_at_readiness(self) -> None:
        self._readiness_timer = self._loop.call_later(READINESS_LOOK_S, self._look_at_readiness)
        ready = self.ready_workers > 0
        if ready != self._told_ready:
            self._told_ready = ready
            self._on_readiness(ready)
