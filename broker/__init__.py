"""The broker: who is alive, who is busy, which job runs where, who is refused. Soft state only."""
