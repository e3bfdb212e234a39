"""The engine process itself: loads the model, then draws one job after the other until its worker is gone.

The main thread draws. A second thread listens to the worker, so that a cancel is heard while a step runs; a
third makes PNGs, so that the next job need not wait for them.
"""

import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, assert_never

import structlog

from gpu_worker.engine_pipe import (
    CancelCommand,
    Command,
    EngineMessage,
    EngineOptions,
    LastWords,
    RunCommand,
    send_message,
)
from gpu_worker.engines.engine import (
    Drawing,
    Engine,
    EngineBroken,
    EngineJob,
    JobCancelled,
    ModelUnusable,
    NonFiniteImage,
    NotEnoughFreeMemory,
    OutOfDeviceMemory,
)
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.offline import prepare_environment
from gpu_worker.events import (
    EngineDrawn,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
)
from gpu_worker.model_store import (
    EMBEDDED_FOLDER,
    Embedded,
    EngineChoice,
    Fake,
    FluxFolder,
    check_embedded_folder,
    check_flux_folder,
)
from gpu_worker.parent_death import live_no_longer_than
from gpu_worker.png_thread import DrawnImage, PngThread
from gpu_worker.preload_request import PRELOAD_MODULE
from gpu_worker.receipt import ReceiptWriter
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.failures import FailureCode
from proto.logs import configure_logging, short_id
from proto.messages import MAX_IMAGE_BYTES, JobPhase

_EXIT_ERROR: Final = 1
_IMPORTED_PERCENT: Final = 15
_LOADED_PERCENT: Final = 95

log = structlog.get_logger()


def run_engine(
    pipe: "Connection[EngineMessage, Command]",
    child: int,
    choice: EngineChoice,
    options: EngineOptions,
    forkserver_pid: int,
) -> None:
    """The process's whole life. It skips the interpreter's own end, which a broken device can block.

    `forkserver_pid` is this process's parent's.
    """
    live_no_longer_than(forkserver_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()
    configure_logging("engine", options.log_level, options.log_format)
    code = EngineChild(pipe, child).live(choice, options) if _is_prepared(pipe) else EXIT_BAD_CONFIGURATION
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_prepared(pipe: "Connection[EngineMessage, Command]") -> bool:
    """Whether the forkserver has done its part; without it this process could outlive its worker."""
    if PRELOAD_MODULE in sys.modules:
        return True
    pipe.send(LastWords(reason=f"the forkserver could not import {PRELOAD_MODULE}", hopeless=True))
    return False


class StepClock:
    """How long the denoising steps of one job took."""

    def __init__(self) -> None:
        self.steps_time_s: float | None = None
        """None until they are over."""
        self._begun_at = 0.0

    def progressed(self, phase: JobPhase, step: int, now: float) -> None:
        """An engine that begins anew has taken the time of its last try."""
        if phase is JobPhase.STEP and step == 0:
            self._begun_at = now
        elif phase is JobPhase.DECODE:
            self.steps_time_s = now - self._begun_at


class _Slot:
    """A job from its arrival to its end."""

    def __init__(self, job: EngineJob) -> None:
        self.job = job
        self.cancelled = threading.Event()
        self.clock = StepClock()


class EngineChild:
    """Speaks for one engine over the pipe."""

    def __init__(self, pipe: "Connection[EngineMessage, Command]", child: int) -> None:
        self._pipe = pipe
        self._child = child
        self._waiting: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._slots: dict[bytes, _Slot] = {}
        self._sending = threading.Lock()
        self._pngs = PngThread(self._finish)
        self._png_of: Callable[[DrawnImage], bytes]
        """From when the model is known."""

    def live(self, choice: EngineChoice, options: EngineOptions) -> int:
        """Until something ends it; returns the exit code."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        try:
            engine = self._bring_up(choice, options)
            while True:
                self._run(engine, self._waiting.get())
        except ModelUnusable as error:
            log.error("model unusable", reason=str(error))
            self._say_farewell(LastWords(reason=str(error), hopeless=True))
            return EXIT_BAD_CONFIGURATION
        except NotEnoughFreeMemory as error:
            log.error("not enough memory for the model now", reason=str(error))
            self._say_farewell(LastWords(reason=str(error), temporary=True))
            return _EXIT_ERROR
        except OutOfDeviceMemory as error:
            log.error("not enough memory for a first image", reason=str(error))
            self._say_farewell(LastWords(reason=str(error)))
            return _EXIT_ERROR
        except EngineBroken as error:
            log.error("engine broken", reason=str(error))
            self._pngs.wait_idle()
            self._say_farewell(LastWords(reason="its device failed", code=FailureCode.DEVICE_POISONED))
            return _EXIT_ERROR
        except Exception as error:
            log.exception("engine process ends after an error")
            # Clients see the reason: what the error says may name a path, or repeat a prompt.
            self._say_farewell(LastWords(reason=f"it raised {type(error).__name__}, see its log"))
            return _EXIT_ERROR

    def _say_farewell(self, last_words: LastWords) -> None:
        try:
            self._send(last_words)
        except OSError:
            log.debug("nobody is left to hear why the engine process ends")

    def _bring_up(self, choice: EngineChoice, options: EngineOptions) -> Engine:
        self._report_loading("importing the libraries", 0)
        try:
            engine = make_engine(choice, options)
            # Not above, as the worker's own process imports this module and has no use for numpy.
            from gpu_worker.png import encode_png  # noqa: PLC0415
        except ImportError as error:
            raise ModelUnusable(f"a library of the engine cannot be imported: {first_line(error)}") from error
        model = engine.load(
            lambda activity, percent: self._report_loading(
                activity, _IMPORTED_PERCENT + percent * (_LOADED_PERCENT - _IMPORTED_PERCENT) // 100
            )
        )
        self._report_loading("drawing a first image", _LOADED_PERCENT)
        engine.warm_up()
        receipts = ReceiptWriter(worker_id=options.worker_id, model=model, with_prompt=options.receipt_prompt)
        self._png_of = lambda image: encode_png(image.pixels, receipts.texts(image.job))
        self._pngs.start()
        self._send(EngineReady(child=self._child, model=model))
        return engine

    def _report_loading(self, activity: str, percent: int) -> None:
        self._send(EngineLoading(child=self._child, activity=activity, percent=percent))

    def _send(self, message: EngineMessage) -> None:
        """From whichever thread: the pipe itself would mix up two messages."""
        with self._sending:
            send_message(self._pipe, message)

    def _listen(self) -> None:
        """In the second thread, until the worker is gone: then nobody wants what is being drawn."""
        while True:
            try:
                command = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            match command:
                case RunCommand(job=job):
                    slot = self._slots[job.execution_id] = _Slot(job)
                    self._waiting.put(slot)
                case CancelCommand(execution_id=execution_id):
                    cancelled = self._slots.get(execution_id)
                    if cancelled is not None:
                        cancelled.cancelled.set()
                case _:
                    assert_never(command)

    def _run(self, engine: Engine, slot: _Slot) -> None:
        """One job, to its pixels or another end. Raises `EngineBroken`: the process's end is the job's."""
        try:
            drawn, drawing = self._draw(engine, slot)
        except EngineBroken:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the job has an end
            failed = self._failure(slot.job, error)
            if failed.code is FailureCode.OUT_OF_MEMORY:
                self._pngs.wait_idle()  # The worker will replace this process.
            del self._slots[slot.job.execution_id]
            self._send(failed)
            return
        self._pngs.take_place()
        del self._slots[slot.job.execution_id]
        self._send(drawn)
        self._pngs.give(DrawnImage(job=slot.job, pixels=drawing.image, png=drawing.png))

    def _draw(self, engine: Engine, slot: _Slot) -> tuple[EngineDrawn, Drawing]:
        job = slot.job
        started = time.monotonic()
        drawing = engine.generate(job, self._progress_reporter(slot))
        now = time.monotonic()
        expected = (job.parameters.height, job.parameters.width, 3)
        if drawing.image.shape != expected:
            raise RuntimeError(f"the engine drew {drawing.image.shape} instead of {expected}")
        if slot.cancelled.is_set():
            raise JobCancelled
        drawn = EngineDrawn(
            child=self._child,
            execution_id=job.execution_id,
            inference_time_s=now - started,
            steps_time_s=slot.clock.steps_time_s,
            text_cached=drawing.text_cached,
            at=now,
        )
        return drawn, drawing

    def _finish(self, image: DrawnImage) -> None:
        """In the third thread: make the PNG, and hand it over."""
        message: EngineMessage
        try:
            message = self._encode(image)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has an end
            message = self._failure(image.job, error)
        try:
            self._send(message)
        except OSError:
            log.debug("nobody is left to take the PNG", job_id=short_id(image.job.job_id))

    def _encode(self, image: DrawnImage) -> EngineFinished | EngineFailed:
        begun_at = time.monotonic()
        png = self._png_of(image) if image.png is None else image.png
        if len(png) > MAX_IMAGE_BYTES:
            return self._failed(
                image.job,
                FailureCode.IMAGE_TOO_LARGE,
                f"the PNG has {len(png)} bytes, at most {MAX_IMAGE_BYTES} are allowed",
            )
        return EngineFinished(
            child=self._child,
            execution_id=image.job.execution_id,
            png=png,
            begun_at=begun_at,
            at=time.monotonic(),
        )

    def _progress_reporter(self, slot: _Slot) -> Callable[[JobPhase, int], None]:
        def report(phase: JobPhase, step: int) -> None:
            if slot.cancelled.is_set():
                raise JobCancelled
            now = time.monotonic()
            slot.clock.progressed(phase, step, now)
            self._send(
                EngineProgress(
                    child=self._child,
                    execution_id=slot.job.execution_id,
                    phase=phase,
                    step=step,
                    at=now,
                )
            )

        return report

    def _failure(self, job: EngineJob, error: Exception) -> EngineFailed:
        match error:
            case JobCancelled():
                return self._failed(job, FailureCode.CANCELLED, "")
            case OutOfDeviceMemory() | MemoryError():
                return self._failed(job, FailureCode.OUT_OF_MEMORY, first_line(error))
            case NonFiniteImage():
                return self._failed(job, FailureCode.NON_FINITE_IMAGE, first_line(error))
            case _:
                log.error("engine error", job_id=short_id(job.job_id), exc_info=error)
                return self._failed(job, FailureCode.ENGINE_ERROR, first_line(error))

    def _failed(self, job: EngineJob, code: FailureCode, detail: str) -> EngineFailed:
        return EngineFailed(child=self._child, execution_id=job.execution_id, code=code, detail=detail)


def make_engine(choice: EngineChoice, options: EngineOptions) -> Engine:
    """The engine, its libraries imported but nothing loaded. Raises `ModelUnusable`, `ImportError`."""
    match choice:
        case Fake():
            from gpu_worker.engines.fake import FakeEngine  # noqa: PLC0415

            return FakeEngine(
                step_s=choice.step_s,
                load_s=choice.load_s,
                faults=choice.faults,
                gate=choice.gate,
                png_bytes=choice.png_bytes,
            )
        case FluxFolder(path=folder):
            check_flux_folder(folder)
            return _flux_engine(folder, options)
        case Embedded(warning=warning):
            check_embedded_folder()
            # So small a model is faster on one thread, and its bytes depend on their number.
            alone = replace(options, threads=options.threads or 1)
            return _flux_engine(EMBEDDED_FOLDER, alone, engine="embedded", warning=warning)
        case _:
            assert_never(choice)


def _flux_engine(
    folder: Path, options: EngineOptions, *, engine: str = "flux", warning: str | None = None
) -> Engine:
    """From a folder that was checked before: the imports take many seconds."""
    prepare_environment(options.cuda_visible_devices)
    from gpu_worker.engines.flux import FluxEngine  # noqa: PLC0415

    return FluxEngine(
        folder,
        device=options.device,
        device_asked_for=options.device_asked_for,
        threads=options.threads,
        memory_plan=options.memory_plan,
        prompt_cache_bytes_max=options.prompt_cache_bytes_max,
        engine=engine,
        warning=warning,
    )
