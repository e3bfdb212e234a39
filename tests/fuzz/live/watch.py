"""What must hold while the service is attacked: a good client is served, nothing restarts, grows or leaks."""

import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc
import psutil
from processes.stack import Client, Refusal, Stack, content_of

GROWTH_LIMIT_MIB: Final = 128
"""Of one process above what it had before, shared memory by its part (PSS)."""
BACK_LIMIT_S: Final = 45.0
"""For descriptors to be closed after an attack: HTTP ends an idle connection after 30 s."""
FEW_DESCRIPTORS: Final = 4
"""That come and go with good connections."""
ANSWER_LIMIT_S: Final = 120.0
"""For one good call, on a machine that is attacked."""
_LOOK_S: Final = 0.1
_MIB: Final = 1024 * 1024
_AGAIN: Final = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
"""Codes after which a client comes again: a busy worker, a connection that a flood has cost."""


class GoodClient(threading.Thread):
    """Draws one picture after the other, and looks whether it is its own."""

    def __init__(self, client: Client, *, is_crowded: bool) -> None:
        super().__init__(daemon=True, name="good client")
        self._client = client
        self._is_crowded = is_crowded
        self._over = threading.Event()
        self.served = 0
        self.refusals: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            self._draw(f"good job {number}", seed=number)

    def _draw(self, prompt: str, seed: int) -> None:
        outcome = self._client.begin(prompt, steps=1, seed=seed, deadline_s=ANSWER_LIMIT_S).outcome(
            2 * ANSWER_LIMIT_S
        )
        if isinstance(outcome, Refusal):
            self.refusals[f"{outcome.code.name} {outcome.reason}".strip()] += 1
            is_one_of_too_many = (
                self._is_crowded and outcome.code is grpc.StatusCode.CANCELLED and not outcome.reason
            )
            if outcome.code not in _AGAIN and not is_one_of_too_many:
                self.wrong.append(f"{prompt}: {outcome}")
            self._over.wait(_LOOK_S)
        elif outcome.seed != seed or content_of(outcome).seed != seed:
            self.wrong.append(f"{prompt}: the picture of another seed")
        else:
            self.served += 1

    def end(self) -> None:
        self._over.set()
        self.join(3 * ANSWER_LIMIT_S)
        if self.is_alive():
            self.wrong.append("a good call hangs")


class Watch:
    """Around one attack. `problems` are filled in at its end."""

    def __init__(self, stack: Stack, *, is_crowded: bool) -> None:
        """`is_crowded`: by more calls at once than gRPC lets wait, so that it may cancel a good one too."""
        self._stack = stack
        self._is_crowded = is_crowded
        self._good = GoodClient(stack.client(), is_crowded=is_crowded)
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.problems: list[str] = []
        self.growth_mib: dict[str, float] = {}
        self.shed: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._stack.client().draw("before")
        self._processes = self._present()
        self._descriptors = {name: process.num_fds() for name, process in self._processes.items()}
        self._start = {name: pss_mib(process.pid) for name, process in self._processes.items()}
        self._peak = dict(self._start)
        self._shed = self._shed_now()
        self._good.start()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._sampler.join()
        self._good.end()
        if kind is not None:
            return
        self.growth_mib = {name: self._peak[name] - mib for name, mib in self._start.items()}
        after = self._shed_now()
        self.shed = {
            what: n - self._shed.get(what, 0) for what, n in after.items() if n > self._shed.get(what, 0)
        }
        self.problems += self._good.wrong
        if not self._good.served:
            self.problems.append(f"no good job was served: {dict(self._good.refusals)}")
        self.problems += [
            f"{name} grew by {mib:.0f} MiB" for name, mib in self.growth_mib.items() if mib > GROWTH_LIMIT_MIB
        ]
        if self._present() != self._processes:
            self.problems.append("a process has ended, or another one is in its place")
        else:
            self.problems += self._not_closed()
        for component in self._stack.components:
            text = component.log_text()
            if "Traceback" in text:
                self.problems.append(f"{component.name}: {text[text.index('Traceback') :][:1500]}")

    @property
    def served(self) -> int:
        return self._good.served

    @property
    def refusals(self) -> dict[str, int]:
        return dict(self._good.refusals)

    def _present(self) -> dict[str, psutil.Process]:
        found = {each.name: psutil.Process(each.pid) for each in self._stack.components if each.is_running}
        for name, worker in self._stack.workers.items():
            found[f"{name}'s engine"] = worker.engine()
        return found

    def _shed_now(self) -> dict[str, int]:
        give_up_at = time.monotonic() + ANSWER_LIMIT_S
        pause = threading.Event()
        while True:
            try:
                return dict(self._stack.metrics().shed)
            except grpc.RpcError as error:
                is_one_of_too_many = self._is_crowded and error.code() is grpc.StatusCode.CANCELLED
                if not is_one_of_too_many or time.monotonic() > give_up_at:
                    raise
            pause.wait(_LOOK_S)

    def _sample(self) -> None:
        while not self._over.wait(_LOOK_S):
            for name, process in self._processes.items():
                with suppress(OSError):
                    self._peak[name] = max(self._peak[name], pss_mib(process.pid))

    def _not_closed(self) -> list[str]:
        give_up_at = time.monotonic() + BACK_LIMIT_S
        pause = threading.Event()
        while True:
            more = {
                name: process.num_fds() - self._descriptors[name]
                for name, process in self._processes.items()
                if process.num_fds() > self._descriptors[name] + FEW_DESCRIPTORS
            }
            if not more or time.monotonic() > give_up_at:
                return [f"{name} has {count} descriptors more" for name, count in more.items()]
            pause.wait(_LOOK_S)


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / _MIB
    return 0.0
