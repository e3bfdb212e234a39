"""The names of what must hold, and the times that are allowed for it. Each has its rule in a `*_rules.py`."""

from typing import Final

IN_TIME: Final = "a call ends in time"
ONCE: Final = "a call is answered once"
OWN_CONTENT: Final = "an image is the one asked for"
OWN_EXECUTION: Final = "an image was drawn for the same key and parameters"
SAME_BYTES: Final = "a repeat gets the same bytes"
NOT_REFUSED: Final = "an accepted call is not refused"
EXPLICIT: Final = "an accepted call ends with a reason of its own"
RETRIED: Final = "an attempt that failed is tried again while a worker may come"
ATTEMPTS: Final = "at most three attempts"
CARRIED: Final = "a frontend carries along what it was told of a call"
CRASHES: Final = "a poison job costs two engines"
ONE_A_SLOT: Final = "one job a slot"
BEGUN_ONCE: Final = "an execution begins once"
ONE_AT_A_TIME: Final = "a job runs once at a time"
FENCE: Final = "only the current execution delivers"
WINDOW: Final = "nothing is dispatched in the rebuild window"
ONE_A_KEY: Final = "one active job a key"
FAIR: Final = "keys take turns"
MISMATCH: Final = "a key with other parameters is refused"
JOINED: Final = "a call is not refused while what would answer it runs"
WANTED: Final = "what somebody waits for is neither cancelled nor dropped"
UNWANTED: Final = "what nobody waits for is stopped"
DETACHED: Final = "what is detached is not cancelled"
GRACE: Final = "what a lost frontend leaves behind goes on for a while"
HELD: Final = "an outcome is held until it is released"
KEPT: Final = "a kept image is kept"
OBEYED: Final = "a worker ends nothing that another broker wants"
TRULY: Final = "a worker says truly what other brokers want"
PUSHED: Final = "an outcome goes to every broker that wants it"
FOREIGN: Final = "a broker leaves alone what only others want"
LET_GO: Final = "a broker ends nothing of a call that waits elsewhere now"
PRESENT: Final = "a call fails only with the broker that it is at"
MOVED: Final = "a call leaves a broker that says nothing"
REACHABLE: Final = "no call ends for want of a broker while there is one"
RIVAL: Final = "a worker without a rival is not turned away"
NOTICED: Final = "a dead peer is noticed"
PROGRESS: Final = "an accepted job gets on"
CORES: Final = "cores agree with themselves"
AGREE: Final = "views agree when all is over"
RELEASED: Final = "nothing is left when all is over"
FRESH: Final = "a fresh call gets its image when all is over"
RAISED: Final = "a core raises nothing"
"""Counted only when one does."""

INVARIANTS: Final = (
    IN_TIME,
    ONCE,
    OWN_CONTENT,
    OWN_EXECUTION,
    SAME_BYTES,
    NOT_REFUSED,
    EXPLICIT,
    RETRIED,
    ATTEMPTS,
    CARRIED,
    CRASHES,
    ONE_A_SLOT,
    BEGUN_ONCE,
    ONE_AT_A_TIME,
    FENCE,
    WINDOW,
    ONE_A_KEY,
    FAIR,
    MISMATCH,
    JOINED,
    WANTED,
    UNWANTED,
    DETACHED,
    GRACE,
    HELD,
    KEPT,
    OBEYED,
    TRULY,
    PUSHED,
    FOREIGN,
    LET_GO,
    PRESENT,
    MOVED,
    REACHABLE,
    RIVAL,
    NOTICED,
    PROGRESS,
    CORES,
    AGREE,
    RELEASED,
    FRESH,
)
"""Every run of some length must have put each of these to the test."""

LATE_S: Final = 1.0
"""How long after its deadline a call may end, on its frontend's clock."""
CALM_S: Final = 15.0
"""Without a disturbance for so long, no peer is behind: longer than `peer_lost_s` and a rebuild window."""
STOP_S: Final = 6.0
"""A waiter's leaving reaches the engine by then, a slow step included."""
STUCK_S: Final = 10.0
"""How long an accepted job may be left alone beside an idle worker: a rebuild window and two repetitions."""
MARGIN: Final = 0.97
"""Of durations that somebody else's clock measures."""
DRIFT: Final = 0.06
"""Share of a deadline by which three clocks together may be wrong about it."""
