"""What two processes of the service must agree on: the contract, the wire, its timing, the log format."""
