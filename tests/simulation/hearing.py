"""Which reports of workers a broker takes: it drops one that another message of its worker has overtaken."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proto.messages import Outcome, WorkerReport

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.world import World


@dataclass(slots=True)
class Heard:
    worker_id: str
    seq: int
    """Of its latest message."""
    at: float


class Hearing:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._heard: dict[tuple[bytes, bytes], Heard] = {}
        """By epoch and worker: those that are registered there."""

    def takes(self, broker: "BrokerActor", report: WorkerReport) -> bool:
        """By the numbers of what has come from that worker: its first report registers it."""
        of = (broker.epoch, report.incarnation)
        if of in self._heard and report.seq <= self._heard[of].seq:
            return False
        self._heard[of] = Heard(report.worker_id, report.seq, self._world.now)
        return True

    def ended(self, broker: "BrokerActor", outcome: Outcome) -> None:
        """An outcome counts whenever it comes; reports that it has overtaken do not any more."""
        heard = self._heard.get((broker.epoch, outcome.incarnation))
        if heard is not None and outcome.seq > heard.seq:
            heard.seq, heard.at = outcome.seq, self._world.now

    def worker_lost(self, broker: "BrokerActor", worker_id: object) -> None:
        """Whatever it reports next registers it again. Who has just taken its name is not meant."""
        self._heard = {
            of: heard
            for of, heard in self._heard.items()
            if of[0] != broker.epoch or heard.worker_id != worker_id or heard.at == self._world.now
        }
