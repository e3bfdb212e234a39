"""The fault matrix: what can break, how it is broken on one machine, and which tests show what then happens.

`python -m chaos` runs it; the table in docs/promises.md is made from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
PAGE: Final = TESTS.parent / "docs" / "promises.md"
_BEGIN: Final = "<!-- Made by `python -m chaos --write` from tests/chaos/matrix.py: not to be edited. -->\n"
_END: Final = "<!-- End of the table. -->\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    number: int
    """20 was never given."""
    fault: str
    injection: str
    outcome: str
    """What the tests see of it."""
    tests: tuple[str, ...]
    """As `file::name`, below tests/."""


_BROKERS: Final = "chaos/test_brokers.py::test_row_"
_WORKERS: Final = "chaos/test_workers.py::test_row_"
_CONNECTIONS: Final = "chaos/test_connections.py::test_row_"
_ENGINES: Final = "processes/test_engine_faults.py::test_"
_SCARCITY: Final = "chaos/test_scarcity.py::test_row_"

ROWS: Final = (
    Row(
        number=1,
        fault="an idle broker is killed",
        injection="SIGKILL",
        outcome="calls are refused at once; the next one is found by all peers",
        tests=(
            f"{_BROKERS}1_an_idle_broker_is_killed_and_all_register_again",
            "processes/test_broker_loss.py::test_without_a_broker_calls_are_refused_at_once",
        ),
    ),
    Row(
        number=2,
        fault="the broker is killed during a job",
        injection="SIGKILL, SIGTERM; over ipc and tcp",
        outcome="the same execution delivers the image",
        tests=("processes/test_broker_loss.py::test_a_restart_in_the_middle_of_a_job_costs_no_image",),
    ),
    Row(
        number=3,
        fault="the broker is killed before it passes an image on",
        injection="SIGSTOP while the job ends, then SIGKILL",
        outcome="the worker delivers it to the next broker",
        tests=(
            f"{_BROKERS}3_the_broker_is_killed_before_it_passes_an_image_on",
            "processes/test_broker_loss.py::test_what_is_finished_without_a_broker_is_delivered_by_the_next",
        ),
    ),
    Row(
        number=4,
        fault="the broker is killed before it hears that the image has arrived",
        injection="SIGSTOP of the frontend while the image is passed on, then SIGKILL of the broker",
        outcome="one image, drawn once",
        tests=(f"{_BROKERS}4_the_broker_is_killed_before_it_hears_that_the_image_has_arrived",),
    ),
    Row(
        number=5,
        fault="the broker never returns",
        injection="SIGKILL, no other one is started",
        outcome="the open call ends at its deadline, new ones are refused at once",
        tests=(f"{_BROKERS}5_the_broker_does_not_return_and_calls_end_all_the_same",),
    ),
    Row(
        number=6,
        fault="the broker dies again and again",
        injection="SIGKILL as soon as it listens, has workers, has frontends, has adopted",
        outcome="the image, drawn once",
        tests=(f"{_BROKERS}6_the_broker_dies_again_and_again",),
    ),
    Row(
        number=7,
        fault="a worker is killed during a job",
        injection="SIGKILL",
        outcome="drawn by another worker; UNAVAILABLE if there is none",
        tests=(
            "processes/test_worker_loss.py::test_the_job_of_a_killed_worker_runs_again_on_another",
            "processes/test_worker_loss.py::test_a_killed_worker_costs_the_call_and_nothing_else",
        ),
    ),
    Row(
        number=8,
        fault="an engine process is killed",
        injection="SIGKILL",
        outcome="another one draws the job",
        tests=(
            "processes/test_engine_faults.py::test_a_killed_engine_is_replaced",
            "processes/test_engine_faults.py::test_a_job_that_crashes_a_worker_runs_again_on_another",
        ),
    ),
    Row(
        number=9,
        fault="a worker dies with an image that nobody has got",
        injection="the broker is gone while the job ends, then SIGKILL of the worker",
        outcome="drawn by another worker",
        tests=(f"{_WORKERS}9_a_worker_dies_with_an_image_that_nobody_has_got",),
    ),
    Row(
        number=10,
        fault="a worker dies before it has confirmed a job",
        injection="SIGSTOP before the START, then SIGKILL",
        outcome="drawn by another worker",
        tests=(f"{_WORKERS}10_a_worker_dies_before_it_has_confirmed_a_job",),
    ),
    Row(
        number=11,
        fault="a frontend is killed during a call",
        injection="SIGKILL",
        outcome="UNAVAILABLE; a repeat with the same idempotency key joins the job",
        tests=(
            "processes/test_frontend_loss.py::test_a_killed_frontend_is_a_disconnect_of_all_its_callers",
            "processes/test_frontend_loss.py::test_a_repeat_after_a_kill_joins_what_is_being_drawn",
        ),
    ),
    Row(
        number=12,
        fault="a client is killed",
        injection="SIGKILL; a call that is cancelled; a connection that is closed",
        outcome="its job stops at the next step",
        tests=(
            "processes/test_client_gone.py::test_a_client_process_that_is_gone",
            "processes/test_client_gone.py::test_a_call_that_ends_early",
        ),
    ),
    Row(
        number=13,
        fault="a client freezes",
        injection="SIGSTOP",
        outcome="pings find it out; its job stops",
        tests=("processes/test_client_gone.py::test_a_client_process_that_is_gone",),
    ),
    Row(
        number=14,
        fault="a worker freezes, for a moment and for long",
        injection="SIGSTOP, SIGCONT",
        outcome="for a moment: nothing; for long: drawn by another worker, and the late image is nobody's",
        tests=(
            f"{_WORKERS}14_a_worker_that_stands_still_for_a_moment_loses_nothing",
            "processes/test_worker_loss.py::test_what_a_frozen_worker_finishes_too_late_is_nobodys",
            "processes/test_worker_loss.py::test_a_frozen_worker_alone_gives_unavailable_in_time",
        ),
    ),
    Row(
        number=15,
        fault="a broker freezes for longer than any peer may be silent",
        injection="SIGSTOP, SIGCONT",
        outcome="it blames nobody for its own silence; of two the other takes over",
        tests=(
            f"{_BROKERS}15_a_broker_stands_still_for_longer_than_any_peer_may",
            "processes/test_two_brokers.py::test_a_broker_that_was_frozen_finds_its_calls_elsewhere_and_lets_them_go",
        ),
    ),
    Row(
        number=16,
        fault="an engine hangs, or keeps every thread of its process from running",
        injection="`!hang`, `!gil` of the fake engine",
        outcome="its worker is heard all the time, and replaces it",
        tests=(
            f"{_WORKERS}16_an_engine_that_never_gives_the_interpreter_up_is_replaced",
            "processes/test_engine_faults.py::test_a_hanging_engine_is_replaced",
        ),
    ),
    Row(
        number=17,
        fault="a worker's host vanishes, or its cable",
        injection="network namespace, link down",
        outcome="drawn by another host; what it draws for nobody is not delivered",
        tests=(
            "hosts/test_worker_hosts.py::test_the_job_of_a_vanished_host_is_drawn_on_another",
            "hosts/test_worker_hosts.py::test_what_a_cut_off_host_draws_for_nobody_is_not_delivered",
        ),
    ),
    Row(
        number=18,
        fault="a peer does not hear its broker",
        injection="nft drops one way",
        outcome="no job is lost",
        tests=(
            "hosts/test_partitions.py::test_a_job_whose_worker_is_cut_off_from_its_broker_is_not_lost",
            "hosts/test_partitions.py::test_a_call_whose_frontend_loses_its_broker_gets_its_image_through_the_other",
        ),
    ),
    Row(
        number=19,
        fault="a broker does not hear its peer",
        injection="nft drops the other way",
        outcome="no job is lost",
        tests=(
            "hosts/test_partitions.py::test_a_job_whose_worker_is_cut_off_from_its_broker_is_not_lost",
            "hosts/test_partitions.py::test_a_call_whose_frontend_loses_its_broker_gets_its_image_through_the_other",
        ),
    ),
    Row(
        number=21,
        fault="messages are late and overtake each other",
        injection="a middleman delays each of them by chance",
        outcome="everybody gets the own image, and none is drawn twice",
        tests=(f"{_CONNECTIONS}21_messages_that_are_late_and_overtake_each_other",),
    ),
    Row(
        number=22,
        fault="a connection breaks within a frame",
        injection="a proxy passes on a part of it and resets both ends",
        outcome="the image, drawn once",
        tests=(f"{_CONNECTIONS}22_a_connection_that_breaks_within_a_frame",),
    ),
    Row(
        number=23,
        fault="two workers have one name",
        injection="a second process, during a job of the first",
        outcome="the younger stays, the elder ends with status 78",
        tests=(f"{_WORKERS}23_of_two_workers_with_one_name_the_younger_stays",),
    ),
    Row(
        number=24,
        fault="two connections have one routing identity",
        injection="strangers claim each other's, and those that libzmq hands out",
        outcome="nobody else notices",
        tests=(f"{_CONNECTIONS}24_a_stranger_that_claims_the_address_of_another",),
    ),
    Row(
        number=25,
        fault="messages come again",
        injection="a middleman repeats all that was ever said, during a job",
        outcome="nothing is begun, delivered or ended by it",
        tests=(f"{_CONNECTIONS}25_whatever_was_said_is_said_again",),
    ),
    Row(
        number=26,
        fault="a peer speaks another version",
        injection="frames",
        outcome="it is told so",
        tests=("sockets/test_router.py::test_another_version_is_answered",),
    ),
    Row(
        number=27,
        fault="what is no message",
        injection="frames",
        outcome="dropped and counted, others are served",
        tests=("sockets/test_router.py::test_garbage_is_dropped_and_counted_while_others_are_served",),
    ),
    Row(
        number=28,
        fault="a message is too large, or never ends",
        injection="frames, with a memory limit (cgroup) on the broker",
        outcome="its connection ends; or the kernel kills the broker, and the next one loses nothing",
        tests=(
            f"{_SCARCITY}28_a_message_without_end_fills_the_brokers_memory",
            "sockets/test_router.py::test_a_message_larger_than_any_ends_its_connection_alone",
        ),
    ),
    Row(
        number=29,
        fault="a broker or a frontend has no free descriptor",
        injection="prlimit and idle connections",
        outcome="what is open goes on, and afterwards all is as before",
        tests=(f"{_SCARCITY}29_a_process_without_free_descriptors_recovers",),
    ),
    Row(
        number=30,
        fault="a peer does not read",
        injection="a small buffer that is never emptied",
        outcome="others are not held up",
        tests=("sockets/test_router.py::test_a_peer_that_never_reads_slows_nobody_down",),
    ),
    Row(
        number=31,
        fault="a stranger's key, or none; no authenticator",
        injection="fake peers; a worker on a host of its own",
        outcome="nothing is answered, and the log says so",
        tests=(
            "sockets/test_curve.py::test_strangers_get_nothing_and_the_log_says_so",
            "sockets/test_curve.py::test_without_its_authenticator_nobody_is_admitted",
            "hosts/test_pages.py::test_a_worker_with_a_key_that_is_not_listed_is_no_worker",
        ),
    ),
    Row(
        number=32,
        fault="a GPU is out of memory, or unusable",
        injection="`!oom`, `!poisoned` of the fake engine",
        outcome="the engine is replaced; on two jobs: quarantine",
        tests=(
            f"{_ENGINES}an_engine_that_runs_out_of_memory_is_replaced_and_the_job_to_blame_for_nothing",
            f"{_ENGINES}a_worker_whose_engine_dies_on_two_jobs_is_quarantined",
        ),
    ),
    Row(
        number=33,
        fault="everything is restarted under load",
        injection="SIGTERM, one after the other",
        outcome="no accepted job fails",
        tests=("hosts/test_rolling_restart.py::test_no_accepted_job_fails",),
    ),
    Row(
        number=34,
        fault="both brokers' hosts vanish",
        injection="network namespaces, SIGKILL",
        outcome="the image, drawn once, when they are back",
        tests=("hosts/test_broker_hosts.py::test_both_brokers_vanish_and_the_image_comes_when_they_are_back",),
    ),
    Row(
        number=35,
        fault="one broker hears a worker, the other does not",
        injection="nft drops both ways",
        outcome="no job is lost, the worker is not shown as lost",
        tests=(
            "hosts/test_partitions.py::test_a_job_whose_worker_is_cut_off_from_its_broker_is_not_lost",
            "hosts/test_pages.py::test_a_worker_that_one_broker_hears_is_not_lost",
        ),
    ),
    Row(
        number=36,
        fault="the wall clock jumps by an hour",
        injection="a preloaded library moves it for every process",
        outcome="nothing",
        tests=("chaos/test_wall_clock.py::test_row_36_the_wall_clock_jumps_by_an_hour_and_back",),
    ),
    Row(
        number=37,
        fault="processes hardly get a core",
        injection="cgroup, 5 % of a core each",
        outcome="nobody is taken for lost",
        tests=(f"{_SCARCITY}37_processes_that_hardly_get_a_core_are_not_taken_for_lost",),
    ),
    Row(
        number=38,
        fault="500 callers too many",
        injection="load",
        outcome="each is refused with RESOURCE_EXHAUSTED, and the job goes on",
        tests=(f"{_SCARCITY}38_hundreds_of_callers_too_many_are_told_so",),
    ),
)  # fmt: skip


def table() -> str:
    return "".join(_lines())


def _lines() -> Iterator[str]:
    yield "| # | fault | how | what is seen | tests |\n|---|---|---|---|---|\n"
    for row in ROWS:
        files = ", ".join(dict.fromkeys(f"`{test.partition('::')[0]}`" for test in row.tests))
        yield f"| {row.number} | {row.fault} | {row.injection} | {row.outcome} | {files} |\n"


def with_table(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"
