"""Random identifiers. Cores get them handed in, and so stay deterministic."""

import secrets

from proto.messages import ID_SIZE_BYTES


def new_identifier() -> bytes:
    """128 random bits: a job, an execution, an incarnation, an epoch."""
    return secrets.token_bytes(ID_SIZE_BYTES)
