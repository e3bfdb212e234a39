"""The worker as a process: settings, signals, exit status."""

import asyncio
import sys
from collections.abc import Callable, Sequence

import structlog

from gpu_worker.dealer import WorkerShell
from gpu_worker.engine_process import EngineProcess
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.events import EngineEvent
from gpu_worker.execution_spans import ExecutionSpans
from gpu_worker.model_store import EngineChoice
from gpu_worker.readings import ReadingsTaker
from gpu_worker.settings import WorkerSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.file_watch import keep_fresh
from proto.garbage import collect_rarely
from proto.keyring import Keyring
from proto.large_blocks import keep_large_blocks
from proto.logs import configure_logging
from proto.operator_files import FileUnusable
from proto.signals import on_end_signals, on_reload_signal
from proto.tracing import CannotTrace, tracing_if

log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(WorkerSettings, argv, "gpu_worker")
    configure_logging("worker", settings.log_level, settings.log_format)
    keep_large_blocks()
    collect_rarely()
    try:
        keyring = Keyring(settings.curve_key_file, settings.known_brokers_file, settings.broker_endpoints)
        choice = settings.engine_choice()
    except (FileUnusable, ModelUnusable) as error:
        print(f"gpu_worker: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    try:
        with tracing_if("worker", settings.worker_id, enabled=settings.tracing) as tracing:
            spans = None if tracing is None else ExecutionSpans(tracing)
            return asyncio.run(_run(settings, choice, keyring, spans))
    except CannotTrace as error:
        print(f"gpu_worker: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION


async def _run(
    settings: WorkerSettings, choice: EngineChoice, keyring: Keyring, spans: ExecutionSpans | None
) -> int:
    options = settings.engine_options

    def make_engine(child: int, on_event: Callable[[EngineEvent], None]) -> EngineProcess:
        return EngineProcess(child, choice, options, on_event, every_step=spans is not None)

    shell = WorkerShell(
        worker_id=settings.worker_id,
        broker_endpoints=settings.broker_endpoints,
        timing=settings.timing,
        limits=settings.session_limits,
        make_engine=make_engine,
        take_readings=ReadingsTaker(settings.own_gpu.visible).take,
        keyring=keyring,
        spans=spans,
    )

    def end(signal_name: str) -> None:
        log.info("stopping", on=signal_name)
        shell.drain()

    on_end_signals(end)
    on_reload_signal(lambda: log.info("reading keys and certificates again", on="SIGHUP"))
    keep_fresh(keyring.files, keyring.reload)
    log.info("worker starts", worker_id=settings.worker_id, brokers=settings.broker_endpoints)
    over = await shell.run()
    if over.code:
        print(f"gpu_worker: {over.reason}", file=sys.stderr)
    log.info("worker stopped", reason=over.reason)
    return over.code
