"""What a worker says to its brokers: numbered messages, made of the session's state. Pure."""

import dataclasses
from dataclasses import dataclass
from typing import Final

from gpu_worker.brokers import Brokers
from gpu_worker.encoding import Encodings
from gpu_worker.engine_keeper import EngineKeeper
from gpu_worker.outcomes import MAX_LISTED_OUTCOMES, EndedExecution, OutcomeStore
from gpu_worker.slot import Slot, Stopping, in_engine
from gpu_worker.tally import Tally
from proto.messages import (
    HeldOutcome,
    ImageMade,
    JobFailed,
    Leave,
    Outcome,
    Readings,
    RunningExecution,
    WorkerPhase,
    WorkerReport,
)

DETAIL_CHARACTERS: Final = 500


@dataclass(slots=True, kw_only=True)
class BrokerSide:
    worker_id: str
    incarnation: bytes
    host: str
    brokers: Brokers
    started_at: float

    _readings: tuple[Readings, float] | None = None

    def take_readings(self, readings: Readings, now: float) -> None:
        self._readings = (readings, now)

    def report(
        self,
        broker: int,
        engine: EngineKeeper,
        slot: Slot,
        encoding: Encodings,
        held: OutcomeStore,
        tally: Tally,
        *,
        draining: bool,
        now: float,
    ) -> WorkerReport:
        phase, activity, percent = engine.report()
        listed = (*encoding.listed(), *held.listed())[:MAX_LISTED_OUTCOMES]
        return WorkerReport(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            seq=self.brokers.contact(broker).next_seq(),
            host=self.host,
            age_ms=_ms(now - self.started_at),
            phase=WorkerPhase.DRAINING if draining else phase,
            activity=activity[:DETAIL_CHARACTERS],
            percent=percent,
            model=engine.model,
            running=self._running(slot, broker, now),
            held=tuple(self._marked(outcome, broker, now) for outcome in listed),
            readings=self._aged_readings(now),
            engine_restarts=engine.restarts,
            outcomes_shed=held.shed,
            prompt_cache_hits=tally.prompt_cache_hits,
            prompt_cache_misses=tally.prompt_cache_misses,
        )

    def outcome(self, broker: int, ended: EndedExecution) -> Outcome:
        return Outcome(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            seq=self.brokers.contact(broker).next_seq(),
            execution_id=ended.execution_id,
            job_id=ended.claim.job_id,
            attempts=ended.claim.attempts,
            crashes=ended.claim.crashes,
            image=ended.result if isinstance(ended.result, ImageMade) else None,
            failure=ended.result if isinstance(ended.result, JobFailed) else None,
            body=ended.png,
        )

    def leave(self, broker: int, reason: str) -> Leave:
        return Leave(
            incarnation=self.incarnation,
            seq=self.brokers.contact(broker).next_seq(),
            reason=reason[:DETAIL_CHARACTERS],
        )

    def _running(self, slot: Slot, broker: int, now: float) -> RunningExecution | None:
        busy = in_engine(slot)
        if busy is None:
            return None
        return RunningExecution(
            execution_id=busy.execution_id,
            claim=dataclasses.replace(busy.claim, remaining_ms=_ms(busy.deadline - now)),
            phase=busy.phase,
            step=busy.step,
            steps=busy.job.parameters.steps,
            stopping=isinstance(slot, Stopping),
            wanted_elsewhere=self.brokers.is_wanted_elsewhere(busy.execution_id, broker, now),
        )

    def _marked(self, outcome: HeldOutcome, broker: int, now: float) -> HeldOutcome:
        if not self.brokers.is_wanted_elsewhere(outcome.execution_id, broker, now):
            return outcome
        return dataclasses.replace(outcome, wanted_elsewhere=True)

    def _aged_readings(self, now: float) -> Readings | None:
        if self._readings is None:
            return None
        readings, taken_at = self._readings
        return dataclasses.replace(readings, age_ms=_ms(now - taken_at))


def _ms(duration_s: float) -> int:
    return max(0, round(duration_s * 1000))
