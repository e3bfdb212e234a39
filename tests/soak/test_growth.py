from soak.growth import Growth, growths
from soak.sizes import Sample


def life(
    *, pid: int = 1, first: int = 0, last: int = 10_000, mb_a_job: float = 0.0, opened_a_job: float = 0.0
) -> list[Sample]:
    return [
        Sample(
            at_s=jobs / 10,
            jobs=jobs,
            process="broker-1",
            pid=pid,
            pss_mb=30,
            uss_mb=20 + jobs * mb_a_job,
            descriptors=20 + round(jobs * opened_a_job),
        )
        for jobs in range(first, last + 1, 100)
    ]


def only(samples: list[Sample]) -> Growth:
    (growth,) = growths(samples, jobs=10_000)
    return growth


def test_more_than_a_megabyte_in_ten_thousand_jobs_is_too_much() -> None:
    assert only(life(mb_a_job=1.1e-4)).is_too_much
    assert not only(life(mb_a_job=0.9e-4)).is_too_much


def test_descriptors_that_stay_open_are_too_much() -> None:
    assert only(life(opened_a_job=2e-4)).is_too_much
    assert not only(life()).is_too_much


def test_a_process_that_came_and_went_is_not_measured() -> None:
    passing = [sample for n in range(10) for sample in life(pid=2 + n, first=n * 1000, last=n * 1000 + 900)]
    assert only([*life(), *passing]).pid == 1
