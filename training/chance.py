"""Everything random, by a name and a number: so that a stopped run goes on as it would have."""

import hashlib
import random
from typing import Any

import torch


def numbers(*names: object) -> random.Random:
    return random.Random("/".join(map(str, names)))  # noqa: S311 - no secrets


def tensors(*names: object) -> Any:
    """A generator on the CPU, whose numbers are the same on every device."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
