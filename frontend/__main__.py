"""`python -m frontend`: the gRPC and HTTP side of the service."""

import asyncio
import sys
from collections.abc import Sequence

from frontend.broker_client import BrokerClient
from frontend.ports import CannotListen
from frontend.server import run_until_signal
from frontend.settings import FrontendSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_CANNOT_START
from proto.large_blocks import keep_large_blocks
from proto.logs import configure_logging


def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(FrontendSettings, argv, "frontend")
    configure_logging("frontend", settings.log_level, settings.log_format)
    keep_large_blocks()
    try:
        asyncio.run(run_until_signal(settings, BrokerClient))
    except CannotListen as error:
        print(f"frontend: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
