"""The simulated engine process: it loads, draws step by step, and fails in all the ways that engines do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    EngineDrawn,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
)
from proto.failures import FailureCode
from proto.messages import JobPhase, ModelCard

if TYPE_CHECKING:
    from simulation.worker_actor import WorkerActor

POISON, HUNGRY, HAUNTED = "poison", "hungry", "haunted"
"""Words in a prompt: it crashes every engine, never finds memory enough, makes every engine hang."""
CARD = ModelCard(engine="simulated", name="simulated", precision="none", device="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """How the engines of a world behave. Times in seconds, the rest are probabilities for each execution."""

    load_s: tuple[float, float] = (0.5, 0.5)
    step_s: tuple[float, float] = (0.25, 0.25)
    slow_step: float = 0.0
    """For each step."""
    slow_step_s: float = 3.0
    crash: float = 0.0
    device: float = 0.0
    """It finds its device unusable, and ends itself."""
    hang: float = 0.0
    out_of_memory: float = 0.0
    error: float = 0.0
    png_s: tuple[float, float] = (0.02, 0.02)
    """From the pixels to the PNG, beside the next job."""
    png_error: float = 0.0
    png_hang: float = 0.0
    load_crash: float = 0.0
    """For each start of a process."""
    load_hang: float = 0.0


def picture_of(job: EngineJob) -> bytes:
    """What a simulated engine draws: all that a checker needs to know whose image it is, and which one."""
    parameters = job.parameters
    parts = (
        job.prompt,
        parameters.width,
        parameters.height,
        parameters.steps,
        parameters.guidance,
        parameters.seed,
        job.execution_id.hex(),
    )
    return "|".join(str(part) for part in parts).encode()


class Engine:
    def __init__(self, worker: "WorkerActor", child: int) -> None:
        self._worker, self._world, self.child = worker, worker.world, child
        self.alive = True
        self.ready = False
        self.job: EngineJob | None = None
        self.hangs = False
        self._cancelled: bytes | None = None
        self._postponed: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        temper, rng = worker.world.temper, worker.world.rng
        load_s = rng.uniform(*temper.load_s)
        if rng.random() < temper.load_crash:
            self._later(load_s / 2, self.die, "died while loading")
        elif rng.random() < temper.load_hang:
            self._later(load_s / 3, self._load, 30)
        else:
            self._later(load_s / 2, self._load, 50)
            self._later(load_s, self._loaded)

    # --- Its time, which stands still while it is frozen ---------------------------------------

    def _later(self, delay_s: float, step: Callable[..., None], *arguments: object) -> None:
        self._world.after(delay_s, self._do, step, arguments)

    def _do(self, step: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self.alive:
            return
        if self._worker.is_engine_frozen:
            self._postponed.append((step, arguments))
        else:
            step(*arguments)

    def thaw(self) -> None:
        postponed, self._postponed = self._postponed, []
        for step, arguments in postponed:
            self._later(0.001, step, *arguments)

    # --- Loading and dying ---------------------------------------------------------------------

    def _load(self, percent: int) -> None:
        self._worker.tell(EngineLoading(child=self.child, activity="weights", percent=percent))

    def _loaded(self) -> None:
        self.ready = True
        self._worker.tell(EngineReady(child=self.child, model=CARD))

    def die(self, reason: str, code: FailureCode | None = None) -> None:
        """The process ends; its parent reaps it a moment later."""
        if not self.alive:
            return
        self.alive, self.job = False, None
        exited = EngineExited(child=self.child, reason=reason, code=code)
        self._world.after(self._world.rng.uniform(0.001, 0.2), self._worker.tell, exited)

    # --- Drawing -------------------------------------------------------------------------------

    def run(self, job: EngineJob) -> None:
        if not self.alive:
            return  # The pipe to it has no other end any more.
        self.job, self._cancelled = job, None
        fate = self._fate(job)
        at_step = self._world.rng.randint(0, job.parameters.steps) if fate else -1
        if fate == "out of memory":
            at_step = job.parameters.steps
        self._progress(job, JobPhase.TEXT, 0)
        self._later(self._step_s(), self._step, job, 0, fate, at_step)

    def _fate(self, job: EngineJob) -> str:
        for word, fate in ((POISON, "crash"), (HUNGRY, "out of memory"), (HAUNTED, "hang")):
            if word in job.prompt:
                return fate
        temper = self._world.temper
        draw = self._world.rng.random()
        for fate, likelihood in (
            ("crash", temper.crash),
            ("device", temper.device),
            ("hang", temper.hang),
            ("out of memory", temper.out_of_memory),
            ("error", temper.error),
        ):
            draw -= likelihood
            if draw < 0:
                return fate
        return ""

    def _step_s(self) -> float:
        temper, rng = self._world.temper, self._world.rng
        if temper.slow_step and rng.random() < temper.slow_step:
            return rng.uniform(0.5, 1.0) * temper.slow_step_s
        low, high = temper.step_s
        return low if low == high else rng.uniform(low, high)

    def cancel(self, execution_id: bytes) -> None:
        self._cancelled = execution_id

    def _step(self, job: EngineJob, step: int, fate: str, at_step: int) -> None:
        if job.execution_id == self._cancelled:
            self._fail(job, FailureCode.CANCELLED)
        elif step == at_step:
            self._meet(fate, job)
        elif step == job.parameters.steps:
            self._progress(job, JobPhase.DECODE, step)
            self._later(self._step_s(), self._draw, job)
        else:
            self._progress(job, JobPhase.STEP, step)
            self._later(self._step_s(), self._step, job, step + 1, fate, at_step)

    def _meet(self, fate: str, job: EngineJob) -> None:
        match fate:
            case "crash":
                self.die("killed by SIGSEGV")
            case "device":
                self.die("the device is unusable", FailureCode.DEVICE_POISONED)
            case "hang":
                self.hangs = True
            case "out of memory":
                self._fail(job, FailureCode.OUT_OF_MEMORY)
            case _:
                self._fail(job, FailureCode.ENGINE_ERROR)

    def _progress(self, job: EngineJob, phase: JobPhase, step: int) -> None:
        self._worker.tell(
            EngineProgress(child=self.child, execution_id=job.execution_id, phase=phase, step=step)
        )

    def _fail(self, job: EngineJob, code: FailureCode) -> None:
        self.job = None
        self._worker.tell(
            EngineFailed(child=self.child, execution_id=job.execution_id, code=code, detail="simulated")
        )

    def _draw(self, job: EngineJob) -> None:
        """From here on it takes the next job."""
        self.job = None
        self._worker.tell(
            EngineDrawn(
                child=self.child,
                execution_id=job.execution_id,
                inference_time_s=0.25 * job.parameters.steps,
                text_cached=self._world.rng.choice((None, False, True)),
            )
        )
        temper, rng = self._world.temper, self._world.rng
        if temper.png_hang and rng.random() < temper.png_hang:
            return
        makes = self._fail_png if temper.png_error and rng.random() < temper.png_error else self._finish
        self._later(rng.uniform(*temper.png_s), makes, job)

    def _fail_png(self, job: EngineJob) -> None:
        self._worker.tell(
            EngineFailed(
                child=self.child,
                execution_id=job.execution_id,
                code=FailureCode.IMAGE_TOO_LARGE,
                detail="simulated",
            )
        )

    def _finish(self, job: EngineJob) -> None:
        self._worker.tell(
            EngineFinished(child=self.child, execution_id=job.execution_id, png=picture_of(job))
        )
