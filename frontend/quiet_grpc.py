"""Keeps gRPC's own lines, of a format of their own, out of our log; to be imported before gRPC is.

At its lower levels it writes one for each TLS handshake that fails: whoever reaches the port could fill the
disk.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
