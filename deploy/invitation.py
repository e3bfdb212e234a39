"""What somebody needs to know to use the service that runs here."""

import sys
from pathlib import Path

from deploy.readiness import WorkerProgress
from deploy.stack import Stack


def invitation(stack: Stack, workers: list[WorkerProgress]) -> list[str]:
    """The lines that say that the service is ready, and where."""
    if stack.api_key_was_generated:
        keys = f"{stack.api_keys[0]} (made for this run; API_KEYS=key1,key2 sets your own)"
    else:
        keys = f"{len(stack.api_keys)} from API_KEYS"
    return [
        *sorted({f"note: {worker.warning}" for worker in workers if worker.warning}),
        "ready",
        f"  gRPC     {stack.grpc_address}",
        f"  HTTP     {stack.metrics_url} (also /healthz, /readyz)",
        f"  api-key  {keys}",
        f"  draw     {sample_command(stack)}",
        "  stop     Ctrl-C",
    ]


def sample_command(stack: Stack) -> str:
    """What draws an image with the sample client."""
    key = stack.api_keys[0] if stack.api_key_was_generated else "YOUR_KEY"
    authority = " AUTHORITY.pem" if stack.is_grpc_encrypted else ""
    return f"{_from_here(Path(sys.executable))} examples/generate.py {stack.grpc_address} {key}{authority}"


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
