"""Whom the broker listens to, by the keys that its peers have proved to own."""

from pathlib import Path
from typing import Final

import structlog

from broker.authorized_keys import ROLES, AuthorizedKeys, read_authorized_keys
from broker.turned_away import TurnedAway
from proto.curve import CurveServer
from proto.key_file import read_key_pair
from proto.latest import keep_latest
from proto.operator_files import FileUnusable

MAX_ROUTES: Final = 4096
"""Connections whose keys are remembered, for each role: more than the broker has peers (PROTOCOL.md §8)."""

log = structlog.get_logger()


class Gatekeeper:
    """Has the broker's own keys, and the list of those who may connect."""

    def __init__(self, key_file: Path, authorized_keys_file: Path) -> None:
        """Raises `FileUnusable`."""
        self._key_file = key_file
        self._authorized_keys_file = authorized_keys_file
        self._own = read_key_pair(key_file)
        self._authorized = read_authorized_keys(authorized_keys_file)
        self.turned_away = TurnedAway()

    @property
    def files(self) -> tuple[Path, ...]:
        return self._key_file, self._authorized_keys_file

    @property
    def public_key(self) -> str:
        return self._own.public

    def server(self, role: str) -> CurveServer:
        """How to listen for peers of this role."""
        return CurveServer(keys=self._own, domain=role)

    def is_authorized(self, role: str, public_key: str) -> bool:
        return self._authorized.name_of(role, public_key) is not None

    def welcomes(self, role: str, public_key: str, address: str) -> bool:
        """The verdict on a peer that wants to connect; it is logged."""
        name = self._authorized.name_of(role, public_key)
        if name is not None:
            log.info("peer admitted", role=role, name=name, address=address)
            return True
        other = self._authorized.other_role_of(role, public_key)
        why = f"it is {other[0]} {other[1]}" if other else "its key is not in authorized_keys_file"
        self.turned_away.add(role, why, address=address, key=public_key)
        return False

    def reload(self) -> None:
        """Read the list again: a new key is admitted, an old one is not heard any more.

        A list that cannot be used changes nothing. The broker's own key stays until it starts again.
        """
        try:
            fresh = read_authorized_keys(self._authorized_keys_file)
        except FileUnusable as error:
            log.error("keys not read again, the old ones stay", why=str(error))
        else:
            self._take(fresh)
        self._look_at_own_key()

    def _look_at_own_key(self) -> None:
        """Whatever has become of it, keys that were taken out of the list are."""
        try:
            is_new = read_key_pair(self._key_file) != self._own
        except FileUnusable as error:
            log.error("the broker could not start again with its own key", why=str(error))
            return
        if is_new:
            log.warning("the broker's own key has changed: it is used when the broker starts again")

    def _take(self, fresh: AuthorizedKeys) -> None:
        old, self._authorized = self._authorized, fresh
        log.info(
            "keys read again",
            added=sorted({name for entry, name in fresh.names.items() if entry not in old.names}),
            removed=sorted({name for entry, name in old.names.items() if entry not in fresh.names}),
            **{f"{role}_keys": fresh.count(role) for role in ROLES},
        )


class RouteGuard:
    """Implements `sockets.Guard` for one role. A connection outlives its key in the list; no message does."""

    def __init__(self, gatekeeper: Gatekeeper, role: str) -> None:
        self._gatekeeper = gatekeeper
        self._role = role
        self._keys: dict[bytes, str] = {}
        """By route, the one that was heard last at the end."""

    def admits(self, route: bytes, public_key: str | None) -> bool:
        self._keys.pop(route, None)
        if public_key is None or not self._gatekeeper.is_authorized(self._role, public_key):
            why = "its key was taken out of authorized_keys_file"
            self._gatekeeper.turned_away.add(self._role, why, key=public_key)
            return False
        self._keys[route] = public_key
        keep_latest(self._keys, MAX_ROUTES)
        return True

    def may_be_told(self, route: bytes) -> bool:
        key = self._keys.get(route)
        return key is not None and self._gatekeeper.is_authorized(self._role, key)
