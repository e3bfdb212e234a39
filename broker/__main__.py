"""`python -m broker`: between frontends and workers."""

import asyncio
import sys
from collections.abc import Sequence

import structlog

from broker.gatekeeper import Gatekeeper
from broker.job_spans import JobSpans
from broker.router import CannotBind, serve
from broker.settings import BrokerSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START
from proto.file_watch import keep_fresh
from proto.garbage import collect_rarely
from proto.large_blocks import keep_large_blocks
from proto.logs import configure_logging
from proto.operator_files import FileUnusable
from proto.signals import on_end_signals, on_reload_signal
from proto.tracing import CannotTrace, tracing_if


def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(BrokerSettings, argv, "broker")
    configure_logging("broker", settings.log_level, settings.log_format)
    keep_large_blocks()
    collect_rarely()
    try:
        with tracing_if("broker", settings.broker_id, enabled=settings.tracing) as tracing:
            asyncio.run(_run(settings, _gatekeeper(settings), None if tracing is None else JobSpans(tracing)))
    except (FileUnusable, CannotTrace) as error:
        print(f"broker: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except CannotBind as error:
        print(f"broker: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


def _gatekeeper(settings: BrokerSettings) -> Gatekeeper | None:
    if settings.curve_key_file is None or settings.authorized_keys_file is None:
        return None
    return Gatekeeper(settings.curve_key_file, settings.authorized_keys_file)


async def _run(settings: BrokerSettings, gatekeeper: Gatekeeper | None, spans: JobSpans | None) -> None:
    stop = asyncio.Event()

    def end(signal_name: str) -> None:
        structlog.get_logger().info("stopping", on=signal_name)
        stop.set()

    on_end_signals(end)
    on_reload_signal(lambda: structlog.get_logger().info("reading keys and certificates again", on="SIGHUP"))
    if gatekeeper is not None:
        keep_fresh(gatekeeper.files, gatekeeper.reload)
    await serve(settings, stop, gatekeeper, spans)


if __name__ == "__main__":
    raise SystemExit(main())
