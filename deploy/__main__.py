"""`python -m deploy`, or `flux-server`: the whole service on this machine, in the foreground."""

import asyncio
from collections.abc import Sequence

from deploy.console import Console, with_readable_logs
from deploy.invitation import invitation
from deploy.launcher import Launcher
from deploy.readiness import WorkerProgress
from deploy.settings import FrontendEnvironment, LauncherSettings
from deploy.stack import build_stack, socket_folder
from proto.configuration import load_settings

PROGRAM = "flux-server"


def main(argv: Sequence[str] | None = None) -> int:
    settings = with_readable_logs(load_settings(LauncherSettings, argv, PROGRAM))
    inherited = load_settings(FrontendEnvironment, [], PROGRAM)
    return asyncio.run(serve(settings, inherited))


async def serve(settings: LauncherSettings, inherited: FrontendEnvironment) -> int:
    """Until a signal asks for the end, or a component cannot run. Returns the exit status."""
    console = Console(PROGRAM, readable_logs=settings.log_format == "console")
    with socket_folder() as folder:
        stack = build_stack(settings, inherited, folder)
        console.tell(f"starting {', '.join(c.name for layer in stack.layers for c in layer)}")

        async def stay(workers: list[WorkerProgress]) -> None:
            for line in invitation(stack, workers):
                console.tell(line)
            await asyncio.Event().wait()

        launcher = Launcher(
            stack, stop_limit_s=settings.stop_limit_s, tell=console.tell, on_line=console.log_line
        )
        outcome = await launcher.run(stay)
    status = console.report(outcome)
    if status == 0:
        console.tell("stopped")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
