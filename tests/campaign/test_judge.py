"""Each breach has a ledger that must be found guilty of it and of nothing else, and one that must not."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from campaign.judge import BEFORE_S, LATE_S, NEGLECTED_S, WHOLE_WITHIN_S, Breach, judge
from campaign.reading import BadLedger, read

DEADLINE_S = 60.0


class Written:
    """A ledger in the making: one campaign of one job and one fault, in which nothing goes wrong."""

    def __init__(self, *, jobs: int = 1, faults: int = 1) -> None:
        self.lines: list[dict[str, Any]] = []
        self.add("campaign", 0, jobs=jobs, faults=faults)

    def add(self, what: str, at: float, **facts: Any) -> Self:
        self.lines.append({"at": at, "what": what, **facts})
        return self

    def job(self, name: str = "a", at: float = 10) -> Self:
        return self.add("job", at, job=name, client="client-1", expected="mine", deadline=at + DEADLINE_S)

    def call(self, number: int, at: float, name: str = "a") -> Self:
        return self.add("call", at, job=name, call=number, frontend="f")

    def answer(self, number: int, at: float, code: str, reason: str = "", **facts: Any) -> Self:
        return self.add("answer", at, job="a", call=number, code=code, reason=reason, **facts)

    def image(self, number: int, at: float, **facts: Any) -> Self:
        known = {"content": "mine", "bytes": "b1", "worker": "worker-1", "attempts": 1}
        return self.answer(number, at, "OK", **{**known, **facts})

    def end(self, at: float, outcome: str = "image") -> Self:
        return self.add("end", at, job="a", outcome=outcome)

    def fault(
        self,
        at: float = 1,
        until: float = 2,
        process: str = "broker",
        target: str = "broker-1",
        proof: str = "seen",
        kind: str = "SIGKILL",
    ) -> Self:
        number = sum(line["what"] == "fault" for line in self.lines)
        self.add("fault", at, fault=number, kind=kind, process=process, targets=[target])
        return self.add("fault over", until, fault=number, proof=proof)

    def finished(self, *, whole: tuple[float, float] = (200, 205), took_s: float = 5) -> Self:
        self.add("calm", whole[0], whole_after_s=took_s)
        return self.add("whole", whole[1], since=whole[0]).add("finished", 300)

    def breaches(self) -> list[Breach]:
        return [verdict.breach for verdict in judge(read(self.text()))]

    def text(self) -> Iterable[str]:
        return [json.dumps(line) for line in self.lines]


def a_job() -> Written:
    return Written().fault().job()


def test_a_job_with_its_image_is_no_breach() -> None:
    assert a_job().call(0, 10).image(0, 11).end(11).finished().breaches() == []


def test_a_repeated_call_that_ends_in_the_image_is_no_breach() -> None:
    ledger = a_job().call(0, 10).answer(0, 11, "UNAVAILABLE", "NO_WORKERS").call(1, 12).image(1, 20).end(20)
    assert ledger.finished().breaches() == []


@pytest.mark.parametrize(
    ("code", "reason"), [("DEADLINE_EXCEEDED", ""), ("UNAVAILABLE", "BROKER_UNREACHABLE")]
)
def test_a_job_whose_time_is_over_is_no_breach(code: str, reason: str) -> None:
    ledger = a_job().call(0, 10).answer(0, 70, code, reason).end(70.1, code)
    assert ledger.finished().breaches() == []


def test_a_job_without_an_end_is_lost() -> None:
    assert a_job().call(0, 10).answer(0, 11, "UNAVAILABLE").finished().breaches() == [Breach.LOST]


def test_a_job_that_ended_in_an_invitation_to_repeat_is_lost() -> None:
    ledger = (
        a_job().call(0, 10).answer(0, 11, "UNAVAILABLE", "WORKER_LOST").end(11, "UNAVAILABLE WORKER_LOST")
    )
    assert ledger.finished().breaches() == [Breach.LOST]


def test_a_job_that_was_never_asked_for_is_lost() -> None:
    assert a_job().end(11, "?").finished().breaches() == [Breach.LOST]


def test_a_call_without_an_answer_hangs() -> None:
    ledger = a_job().call(0, 10).call(1, 20).image(1, 21).end(21)
    assert ledger.finished().breaches() == [Breach.HUNG]


def test_a_call_of_a_killed_client_needs_no_answer() -> None:
    ledger = a_job().fault(12, 14, "client", "client-1").call(0, 10).call(1, 20).image(1, 21).end(21)
    assert ledger.finished().breaches() == []
    frozen = a_job().fault(12, 14, "client", "client-1", kind="SIGSTOP").call(0, 10).call(1, 20).image(1, 21)
    assert frozen.end(21).finished().breaches() == [Breach.HUNG]
    another = a_job().fault(12, 14, "client", "client-2").call(0, 10).call(1, 20).image(1, 21).end(21)
    assert another.finished().breaches() == [Breach.HUNG]


def test_an_answer_after_the_deadline_is_late() -> None:
    late = 10 + DEADLINE_S + LATE_S + 0.1
    ledger = a_job().call(0, 10).answer(0, late, "DEADLINE_EXCEEDED").end(70)
    assert ledger.finished().breaches() == [Breach.LATE]
    ended_late = a_job().call(0, 10).answer(0, 70, "DEADLINE_EXCEEDED").end(late)
    assert ended_late.finished().breaches() == [Breach.LATE]


def test_a_client_that_stood_still_is_late_by_its_own_fault() -> None:
    ledger = a_job().call(0, 10).answer(0, 75, "DEADLINE_EXCEEDED").end(75)
    ledger.add("standstill", 74.5, client="client-1", since=70)
    assert ledger.finished().breaches() == []
    another = a_job().call(0, 10).answer(0, 75, "DEADLINE_EXCEEDED").end(70)
    another.add("standstill", 74.5, client="client-2", since=70)
    assert another.finished().breaches() == [Breach.LATE]


def test_a_client_that_was_dead_is_late_by_its_own_fault() -> None:
    def killed_at(at: float) -> Written:
        ledger = a_job().call(0, 10).fault(at, at + 1, "client", "client-1")
        return ledger.add("started", 75, client="client-1").end(75.5, "client was gone")

    assert killed_at(65).finished().breaches() == []
    by_itself = a_job().call(0, 10).answer(0, 70, "DEADLINE_EXCEEDED").add("started", 75, client="client-1")
    assert by_itself.end(75.5).finished().breaches() == [Breach.LATE]


def test_a_picture_of_something_else() -> None:
    ledger = a_job().call(0, 10).image(0, 11, content="another's").end(11)
    assert ledger.finished().breaches() == [Breach.WRONG_CONTENT]


def test_other_bytes_for_one_key() -> None:
    def twice() -> Written:
        return (
            a_job().call(0, 30).image(0, 31).call(1, 31).image(1, 32, bytes="b2", worker="worker-2").end(32)
        )

    assert twice().finished().breaches() == [Breach.OTHER_BYTES]
    assert twice().fault(31.2, 31.5, "worker", "worker-1").finished().breaches() == []
    assert twice().fault(20, 31 - BEFORE_S + 1, "link", "worker-1").finished().breaches() == []
    assert twice().fault(31.2, 31.5, "worker", "worker-2").finished().breaches() == [Breach.OTHER_BYTES]
    assert twice().fault(31.2, 31.5, "engine", "worker-1").finished().breaches() == [Breach.OTHER_BYTES]
    assert twice().fault(31.2, 31.5, "broker", "broker-1").finished().breaches() == [Breach.OTHER_BYTES]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("UNKNOWN", ""),
        ("INTERNAL", "INTERNAL_ERROR"),
        ("CANCELLED", "CANCELLED"),
        ("RESOURCE_EXHAUSTED", ""),
        ("UNAVAILABLE", "STALE_START"),
        ("INVALID_ARGUMENT", "IDEMPOTENCY_MISMATCH"),
    ],
)
def test_a_status_that_the_contract_does_not_name(code: str, reason: str) -> None:
    ledger = a_job().call(0, 10).answer(0, 11, code, reason).call(1, 12).image(1, 20).end(20)
    assert ledger.finished().breaches() == [Breach.UNNAMED_STATUS]


def test_poison_needs_two_deaths() -> None:
    def poison() -> Written:
        return a_job().fault(12, 13, "engine", "worker-1").call(0, 10)

    ended = ("INTERNAL", "POISON_JOB")
    one = poison().answer(0, 14, *ended).end(14, "INTERNAL POISON_JOB")
    assert one.finished().breaches() == [Breach.UNEXPLAINED_FAILURE]
    two = (
        poison().fault(13, 14, "forkserver", "worker-2").answer(0, 15, *ended).end(15, "INTERNAL POISON_JOB")
    )
    assert two.finished().breaches() == []


def test_a_lost_worker_needs_a_fault() -> None:
    lost = Written().fault(150, 151).job().call(0, 10).answer(0, 11, "UNAVAILABLE", "WORKER_LOST")
    lost.call(1, 12).image(1, 13).end(13)
    assert lost.finished().breaches() == [Breach.UNEXPLAINED_FAILURE]


def test_a_job_that_waits_while_all_is_whole_is_neglected() -> None:
    def waits(open_s: float) -> Written:
        ledger = a_job().call(0, 10).answer(0, 20, "RESOURCE_EXHAUSTED", "ALL_WORKERS_BUSY")
        return ledger.call(1, 21).image(1, 30 + open_s).end(30 + open_s)

    assert waits(NEGLECTED_S + 1).finished(whole=(30, 50)).breaches() == [Breach.NEGLECTED]
    assert waits(NEGLECTED_S - 1).finished(whole=(30, 50)).breaches() == []


def test_a_service_that_is_not_whole_again_in_time() -> None:
    ledger = a_job().call(0, 10).image(0, 11).end(11)
    assert ledger.finished(took_s=WHOLE_WITHIN_S + 1).breaches() == [Breach.NOT_WHOLE_IN_TIME]


def test_what_was_broken_cannot_have_been_whole() -> None:
    ledger = a_job().call(0, 10).image(0, 11).end(11).fault(201, 202)
    assert ledger.finished(whole=(200, 205)).breaches() == [Breach.NOT_WHOLE_IN_TIME]


def test_a_part_that_ended_by_itself() -> None:
    ledger = a_job().call(0, 10).image(0, 11).end(11).add("ended by itself", 20, part="broker-1", status=1)
    assert ledger.finished().breaches() == [Breach.ENDED_BY_ITSELF]


def test_a_fault_without_proof_does_not_count() -> None:
    ledger = Written().fault(proof="").job().call(0, 10).image(0, 11).end(11)
    assert ledger.finished().breaches() == [Breach.TOO_LITTLE]


def test_too_few_jobs_no_end_or_no_calm_is_too_little() -> None:
    few = Written(jobs=2).fault().job().call(0, 10).image(0, 11).end(11)
    assert few.finished().breaches() == [Breach.TOO_LITTLE]
    endless = a_job().call(0, 10).image(0, 11).end(11).add("whole", 205, since=200)
    assert endless.breaches() == [Breach.TOO_LITTLE]
    without_calm = a_job().call(0, 10).image(0, 11).end(11).add("finished", 300)
    assert without_calm.breaches() == [Breach.TOO_LITTLE]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"at": 1, "what": "rumour"}',
        '{"what": "finished"}',
        '{"at": 1, "what": "answer", "job": "unheard of", "call": 0, "code": "OK", "reason": ""}',
    ],
)
def test_what_the_campaign_cannot_have_written_is_refused(line: str) -> None:
    with pytest.raises(BadLedger, match="line 1"):
        read([line])


def test_the_program_says_what_is_broken(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(
        "\n".join(a_job().call(0, 10).image(0, 11, content="another's").end(11).finished().text())
    )
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-P", "-m", "campaign.judge", str(ledger)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(tests)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == "wrong content: a, call 0: another's, not mine\n"
    assert "0 lost, 0 hung, 0 late, 1 wrong content, " in done.stdout
