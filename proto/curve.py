"""CURVE, ZeroMQ's encryption: the key pairs and socket options of its two sides.

A server's options are set on a listening socket, a client's on a connecting one (RFC 26/CurveZMQ). The
client must know its broker's public key; whom a server admits, an authenticator says (RFC 27/ZAP).
"""

from dataclasses import dataclass

import zmq

from proto.key_file import KeyPair


@dataclass(frozen=True, slots=True)
class CurveServer:
    keys: KeyPair
    domain: str
    """What the authenticator is asked about: the role of those who connect here."""

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """To be called before the socket is bound."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, self.keys.secret.encode())
        socket.set(zmq.ZAP_DOMAIN, self.domain.encode())
        # Without it a server that has no authenticator admits every key, also one whose domain is set.
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True, slots=True)
class CurveClient:
    keys: KeyPair
    broker_key: str
    """The public key that the broker must prove to have."""

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """To be called before the socket is connected."""
        socket.set(zmq.CURVE_PUBLICKEY, self.keys.public.encode())
        socket.set(zmq.CURVE_SECRETKEY, self.keys.secret.encode())
        socket.set(zmq.CURVE_SERVERKEY, self.broker_key.encode())
