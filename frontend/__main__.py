"""`python -m frontend`: the gRPC and HTTP side of the service."""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial

import frontend.quiet_grpc  # noqa: F401 - before anything that imports gRPC
from frontend.broker_client import BrokerClient
from frontend.ports import CannotListen
from frontend.server import run_until_signal
from frontend.settings import FrontendSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START
from proto.garbage import collect_rarely
from proto.keyring import Keyring
from proto.large_blocks import keep_large_blocks
from proto.logs import configure_logging
from proto.operator_files import FileUnusable
from proto.tracing import CannotTrace, tracing_if


def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(FrontendSettings, argv, "frontend")
    configure_logging("frontend", settings.log_level, settings.log_format)
    keep_large_blocks()
    collect_rarely()
    try:
        keyring = Keyring(settings.curve_key_file, settings.known_brokers_file, settings.broker_endpoints)
        with tracing_if("frontend", settings.frontend_id, enabled=settings.tracing) as tracing:
            asyncio.run(run_until_signal(settings, partial(BrokerClient, keyring=keyring), tracing))
    except (FileUnusable, CannotTrace) as error:
        print(f"frontend: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except CannotListen as error:
        print(f"frontend: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
