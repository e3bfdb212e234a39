"""What two processes of the service must agree on: the contract, the wire, its timing, the log format.

And what their shells have in common: settings, logs, sockets, signals, the service manager.
"""
