"""`python -m broker`: between frontends and workers."""

import asyncio
import sys
from collections.abc import Sequence

import structlog

from broker.router import CannotBind, serve
from broker.settings import BrokerSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_CANNOT_START
from proto.logs import configure_logging
from proto.signals import on_end_signals, on_reload_signal


def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(BrokerSettings, argv, "broker")
    configure_logging("broker", settings.log_level, settings.log_format)
    try:
        asyncio.run(_run(settings))
    except CannotBind as error:
        print(f"broker: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


async def _run(settings: BrokerSettings) -> None:
    stop = asyncio.Event()

    def end(signal_name: str) -> None:
        structlog.get_logger().info("stopping", on=signal_name)
        stop.set()

    on_end_signals(end)
    on_reload_signal(lambda: structlog.get_logger().info("reading keys and certificates again", on="SIGHUP"))
    await serve(settings, stop)


if __name__ == "__main__":
    raise SystemExit(main())
