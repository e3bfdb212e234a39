"""One line for people on how a broker does, derived from its tables. Pure."""

from broker.jobs import Dispatched
from broker.state import BrokerState


def status_text(state: BrokerState) -> str:
    doing = "draining" if state.draining else "listening for its peers" if state.is_rebuilding else "serving"
    workers = f"{_count(len(state.workers), 'worker')} ({state.ready_workers()} ready)"
    running = sum(isinstance(job.state, Dispatched) for job in state.jobs)
    waiting = sum(job.is_waiting for job in state.jobs)
    frontends = _count(len(state.frontends), "frontend")
    return f"{doing}: {workers}, {frontends}, {running} running, {waiting} waiting"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
