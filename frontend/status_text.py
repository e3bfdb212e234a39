"""One line for people on how a frontend does."""

from frontend.cluster import Cluster
from frontend.rpc import OpenCalls


def status_text(cluster: Cluster, open_calls: OpenCalls, *, draining: bool) -> str:
    doing = "draining" if draining else "serving"
    if not cluster.broker_alive:
        return f"{doing}: no broker answers, {open_calls.count} calls open"
    return f"{doing}: {cluster.ready_workers} workers ready, {open_calls.count} calls open"
