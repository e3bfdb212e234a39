"""Callers that call on and on, whatever happens to the service, and keep what they are told."""

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc
from hosts.cluster import FRONTENDS, KEYS, Cluster
from processes.stack import LIMIT_S, SLACK_S, Client, Drawn, Refusal, content_of, until

from gpu_worker.engines.fake import prompt_digest

DEADLINE_S: Final = 40.0
WISH_LIMIT_S: Final = 2 * DEADLINE_S
"""How long a caller insists on one image."""
CALLERS: Final = 5
PAUSE_S: Final = 0.2
"""Before the next call of a caller that was refused."""
NOT_TAKEN: Final = frozenset(
    {
        "ALL_WORKERS_BUSY",
        "BROKER_DRAINING",
        "BROKER_UNREACHABLE",
        "CLIENT_BUSY",
        "FRONTEND_DRAINING",
        "NO_WORKERS",
        "WORKERS_NOT_READY",
    }
)
"""Reasons for which a call is refused before it is accepted. CLIENT_BUSY is possible with one call at a time:
a broker hears up to 20 ms later of the end of the last one, which came through the other frontend."""
WITHOUT_A_REASON: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""What gRPC itself says of a frontend that is not there, and of a call whose time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    prompt: str
    frontend: str
    seed: int
    outcome: Drawn | Refusal

    @property
    def is_image(self) -> bool:
        return isinstance(self.outcome, Drawn)

    @property
    def is_refusal(self) -> bool:
        """It was not accepted: refused with a reason, or by a frontend that is not there."""
        if isinstance(self.outcome, Drawn):
            return False
        absent = self.outcome.code is grpc.StatusCode.UNAVAILABLE and "connect" in self.outcome.text
        return self.outcome.reason in NOT_TAKEN or absent

    def check(self) -> None:
        """An image is the caller's own."""
        if isinstance(self.outcome, Drawn):
            content = content_of(self.outcome)
            assert (content.prompt_digest, content.seed) == (prompt_digest(self.prompt), self.seed)


class Load:
    """Each caller has a key and one call at a time, through the frontends in turn."""

    def __init__(self, cluster: Cluster, *, callers: int = CALLERS, insist: bool = False) -> None:
        """`insist`: a call without an image is repeated, with its idempotency key, at the other frontend."""
        self.answers: list[Answer] = []
        self._cluster = cluster
        self._insist = insist
        self._ending = threading.Event()
        self._is_broken_off = False
        self._pool = ThreadPoolExecutor(callers)
        self._callers: list[Future[None]] = []

    def __enter__(self) -> Self:
        # The first key is the tests' own.
        for number, key in enumerate(KEYS[1 : 1 + self._pool._max_workers]):
            self._callers.append(self._pool.submit(self._call_on, number, key))
        self.until_images(len(self._callers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._is_broken_off = kind is not None
        self._ending.set()
        self._pool.shutdown()
        if kind is None:
            for caller in self._callers:
                caller.result()

    def _call_on(self, number: int, key: str) -> None:
        clients = {frontend: self._cluster.client(frontend, key) for frontend in FRONTENDS}
        wish = number
        while not self._ending.is_set():
            wish += 1
            self._have_drawn(f"{key}, {wish}", wish, clients)

    def _have_drawn(self, prompt: str, seed: int, clients: dict[str, Client]) -> None:
        give_up_at = time.monotonic() + (WISH_LIMIT_S if self._insist else 0.0)
        for turn in itertools.count(seed):
            frontend = FRONTENDS[turn % len(FRONTENDS)]
            answer = self._call(prompt, seed, frontend, clients[frontend])
            self.answers.append(answer)
            if answer.is_image:
                return
            self._ending.wait(PAUSE_S)
            if self._is_broken_off or time.monotonic() > give_up_at:
                return

    def _call(self, prompt: str, seed: int, frontend: str, client: Client) -> Answer:
        call = client.begin(
            prompt, seed=seed, deadline_s=DEADLINE_S, idempotency_key=prompt if self._insist else None
        )
        outcome = call.outcome(DEADLINE_S + SLACK_S)
        answer = Answer(prompt=prompt, frontend=frontend, seed=seed, outcome=outcome)
        answer.check()
        return answer

    # --- What became of it ---------------------------------------------------------------------

    @property
    def images(self) -> int:
        return sum(answer.is_image for answer in self.answers)

    def until_images(self, more: int, frontend: str | None = None, limit_s: float = LIMIT_S) -> None:
        """Until so many more images have come, through this frontend if one is named."""
        seen = len(self.answers)

        def enough() -> bool:
            self._notice_failed_callers()
            new = (answer for answer in self.answers[seen:] if answer.is_image)
            return sum(frontend in {None, answer.frontend} for answer in new) >= more

        until(f"{more} more images after {self.summary()}", enough, limit_s)

    def until_answers(self, more: int, limit_s: float = LIMIT_S) -> None:
        """Until so many more calls have ended, in whatever way."""
        seen = len(self.answers)

        def enough() -> bool:
            self._notice_failed_callers()
            return len(self.answers) >= seen + more

        until(f"{more} more answers after {self.summary()}", enough, limit_s)

    def _notice_failed_callers(self) -> None:
        for caller in self._callers:
            if caller.done():
                caller.result()

    @property
    def failed(self) -> list[Answer]:
        """Calls that were accepted, or may have been, and have no image."""
        return [answer for answer in self.answers if not (answer.is_image or answer.is_refusal)]

    def unfulfilled(self) -> list[str]:
        """Prompts that have no image."""
        drawn = {answer.prompt for answer in self.answers if answer.is_image}
        wanted = dict.fromkeys(answer.prompt for answer in self.answers)
        return [prompt for prompt in wanted if prompt not in drawn]

    def unexplained(self) -> list[Answer]:
        """Calls that ended without an image and without a word about why."""
        return [
            answer
            for answer in self.answers
            if isinstance(answer.outcome, Refusal)
            and not (answer.outcome.reason or answer.outcome.code in WITHOUT_A_REASON)
        ]

    def summary(self) -> str:
        kinds = Counter(
            "image" if isinstance(answer.outcome, Drawn) else answer.outcome.reason or answer.outcome.text
            for answer in self.answers
        )
        return ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
