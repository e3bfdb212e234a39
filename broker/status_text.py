"""One line for people on how a broker does, derived from its tables. Pure."""

from broker.state import BrokerState


def status_text(state: BrokerState) -> str:
    doing = "draining" if state.draining else "listening for its peers" if state.is_rebuilding else "serving"
    workers = f"{_count(len(state.workers), 'worker')} ({state.ready_workers()} ready)"
    jobs = f"{len(state.jobs.dispatched)} running, {state.jobs.waiting} waiting"
    frontends = _count(len(state.frontends), "frontend")
    return f"{doing}: {workers}, {frontends}, {jobs}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
