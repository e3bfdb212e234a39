"""One line for people on how a worker does, derived from its session. Pure."""

from typing import assert_never

from gpu_worker.engine_keeper import Down, Dying, Loading, Ready
from gpu_worker.session import Session
from gpu_worker.slot import Busy, Free, Stopping
from proto.messages import JobPhase


def status_text(session: Session, now: float) -> str:
    return _doing(session) + _lack_of_brokers(session, now)


def _doing(session: Session) -> str:
    if session.drain is not None:
        jobs = f"{_slot_text(session)}; " if not session.executions.is_idle else ""
        return f"draining: {jobs}{session.held.unreleased} outcomes to hand over"
    match session.engine.state:
        case Down(quarantined=True, reason=reason):
            return f"quarantined: {reason}"
        case Down(reason=reason):
            return f"no engine: {reason}"
        case Loading(activity=activity, percent=percent):
            return f"loading: {activity}, {percent} %"
        case Ready(model=model):
            return f"ready with {model.name} on {model.device}; {_slot_text(session)}"
        case Dying(reason=reason):
            return f"engine process killed: {reason}"
        case _:
            assert_never(session.engine.state)


def _lack_of_brokers(session: Session, now: float) -> str:
    brokers = len(session.contacts)
    heard = sum(not session.contacts.contact(broker).is_unreachable(now) for broker in session.contacts)
    if heard == brokers:
        return ""
    return f"; {heard} of {brokers} brokers answer" if heard else "; no broker answers"


def _slot_text(session: Session) -> str:
    match session.slot:
        case Free():
            return "making a PNG" if session.encoding else "idle"
        case Busy(phase=JobPhase.STEP, step=step, job=job):
            return f"drawing, step {step} of {job.parameters.steps}"
        case Busy(phase=JobPhase.TEXT):
            return "encoding a prompt"
        case Busy():
            return "decoding an image"
        case Stopping():
            return "stopping a job"
        case _:
            assert_never(session.slot)
