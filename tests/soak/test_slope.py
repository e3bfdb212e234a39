import pytest
from soak.slope import theil_sen

JOBS = [100.0 * n for n in range(1000)]


def test_a_leak_is_measured_in_spite_of_noise_and_of_peaks() -> None:
    grows = [50 + 2e-4 * jobs + (n % 7) * 0.3 + (40 if n % 11 == 0 else 0) for n, jobs in enumerate(JOBS)]
    assert theil_sen(JOBS, grows) == pytest.approx(2.0, abs=0.05)


def test_what_a_process_takes_once_is_no_leak() -> None:
    warms_up = [min(80.0, 20 + jobs / 100) for jobs in JOBS]
    one_step_late = [80.0 if jobs < 70_000 else 90.0 for jobs in JOBS]
    assert theil_sen(JOBS, warms_up) == 0
    assert theil_sen(JOBS, one_step_late) == 0


def test_one_point_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two samples"):
        theil_sen([5, 5, 5], [1, 2, 3])
