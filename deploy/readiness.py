"""Finds out whether the service can draw, and tells how far the models are loaded until it can."""

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
import psutil
from pydantic import BaseModel, TypeAdapter, ValidationError

POLL_INTERVAL_S: Final = 0.3
ANSWER_LIMIT_S: Final = 10.0
PATIENCE_S: Final = 30.0
"""After so long without news, say that we are still waiting."""
LOADING_STATE: Final = "loading"
READY_STATES: Final = frozenset({"ready", "busy"})


class WorkerProgress(BaseModel):
    """What matters here of a worker's row in the frontend's /metrics."""

    worker_id: str
    state: str
    phase: str
    percent: int
    model: str
    engine: str
    device: str
    warning: str

    @property
    def is_ready(self) -> bool:
        return self.state in READY_STATES


class ServiceProgress(BaseModel):
    grpc_alive: bool
    workers: list[WorkerProgress]


_DOCUMENT: Final = TypeAdapter(ServiceProgress)


class ReadinessWatch:
    """Asks the frontend's `url` until all `workers` are ready. `tell` gets their progress as it changes."""

    def __init__(
        self,
        *,
        url: str,
        api_key: str,
        http_port: int,
        workers: frozenset[str],
        frontend_pid: Callable[[], int | None],
        tell: Callable[[str], None],
    ) -> None:
        self._url = url
        self._headers = {"Accept": "application/json", "api-key": api_key}
        self._http_port = http_port
        self._workers = workers
        self._frontend_pid = frontend_pid
        self._tell = tell
        self._told: dict[str, str] = {}
        self._told_at = 0.0

    async def until_ready(self) -> list[WorkerProgress]:
        """Returns the workers' last rows."""
        self._told_at = asyncio.get_running_loop().time()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)) as session:
            while True:
                progress = await self._ask(session)
                if progress is not None:
                    ours = [row for row in progress.workers if row.worker_id in self._workers]
                    self._tell_changes(ours)
                    if progress.grpc_alive and sum(row.is_ready for row in ours) == len(self._workers):
                        return ours
                self._reassure()
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _ask(self, session: aiohttp.ClientSession) -> ServiceProgress | None:
        """None while our frontend does not answer; a stranger on its port does not count."""
        pid = self._frontend_pid()
        if pid is None or not listens(pid, self._http_port):
            return None
        try:
            # Its certificate need not name this machine as we do: whose port it is we have seen.
            async with session.get(self._url, headers=self._headers, ssl=False) as response:
                return _DOCUMENT.validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return None

    def _tell_changes(self, workers: list[WorkerProgress]) -> None:
        for row in workers:
            text = _describe(row)
            if self._told.get(row.worker_id) != text:
                self._told[row.worker_id] = text
                self._tell_now(f"{row.worker_id}: {text}")

    def _reassure(self) -> None:
        if asyncio.get_running_loop().time() - self._told_at >= PATIENCE_S:
            last = [
                f"{worker}: {self._told.get(worker, 'not heard of yet')}" for worker in sorted(self._workers)
            ]
            self._tell_now(f"still waiting for {'; '.join(last)}")

    def _tell_now(self, text: str) -> None:
        self._told_at = asyncio.get_running_loop().time()
        self._tell(text)


def listens(pid: int, port: int) -> bool:
    """Whether this process, and not a stranger, listens on the TCP port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections)


def _describe(row: WorkerProgress) -> str:
    if row.is_ready:
        return f"ready with {row.model} on {row.device}"
    if row.state == LOADING_STATE:
        return f"{row.phase}, {row.percent} %"
    return f"{row.state}: {row.phase}" if row.phase else row.state
