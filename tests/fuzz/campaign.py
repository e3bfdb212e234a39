"""All targets, two at a time, each in a process of its own."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuzz.target import Target, keep_corpus
from fuzz.targets import module_of

AT_ONCE: Final = 2
INPUT_LIMIT_S: Final = 30
"""For one input by the clock: one that hangs is a finding."""
MEMORY_LIMIT_MIB: Final = 1024
"""Of a whole process: instrumented code, the corpus, and what the largest input may cost."""
KEPT_INPUTS: Final = 24
KEPT_BYTES: Final = 600
_STATISTIC: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    target: str
    inputs: int
    took_s: float
    peak_mib: int
    edges: int
    statements: int
    reached: int
    finding: str
    """Empty if there is none; otherwise the end of what was written, with the input's file."""

    def __str__(self) -> str:
        rate = self.inputs / self.took_s if self.took_s else 0.0
        share = self.reached / self.statements if self.statements else 0.0
        line = (
            f"{self.target:16} {self.inputs:9,} inputs {rate:8,.0f}/s  {self.edges:5} edges"
            f"  {self.reached:4}/{self.statements:4} statements ({share:.0%})  peak {self.peak_mib} MiB"
        )
        return f"{line}\nFOUND by {self.target}:\n{self.finding}" if self.finding else line


def fuzz_all(
    targets: Iterable[Target], inputs: int, seed: int, folder: Path, *, keep: bool
) -> Iterator[Verdict]:
    """`inputs` of all together; findings are left in `folder`. With `keep`, the corpus is replaced."""
    chosen = list(targets)
    shares = sum(target.share for target in chosen)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = [
            pool.submit(_fuzzed, target, round(inputs * target.share / shares), seed, folder, keep)
            for target in sorted(chosen, key=lambda target: -target.share)
        ]
        for each in as_completed(begun):
            yield each.result()


def _fuzzed(target: Target, inputs: int, seed: int, folder: Path, keep: bool) -> Verdict:
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-") as name:
        corpus = Path(name)
        for number, data in enumerate(target.beginnings()):
            (corpus / f"seed-{number}").write_bytes(data)
        began_s = time.monotonic()
        process = _run(
            "fuzz.guided",
            module_of(target),
            target.name,
            str(corpus),
            f"-runs={inputs}",
            f"-seed={seed}",
            f"-max_len={target.max_bytes}",
            f"-timeout={INPUT_LIMIT_S}",
            f"-rss_limit_mb={MEMORY_LIMIT_MIB}",
            f"-artifact_prefix={folder / target.name}-",
            "-print_final_stats=1",
        )
        took_s = time.monotonic() - began_s
        told = process.stderr + process.stdout
        statistics = {key: int(value) for key, value in _STATISTIC.findall(told)}
        edges = _COVERAGE.findall(told)
        statements, reached = _reached(target, corpus) if process.returncode == 0 else (0, 0)
        if keep and process.returncode == 0:
            keep_corpus(target.name, _worth_keeping(corpus))
        return Verdict(
            target=target.name,
            inputs=statistics.get("number_of_executed_units", 0),
            took_s=took_s,
            peak_mib=statistics.get("peak_rss_mb", 0),
            edges=int(edges[-1][0]) if edges else 0,
            statements=statements,
            reached=reached,
            finding="" if process.returncode == 0 else told[-3000:],
        )


def _reached(target: Target, corpus: Path) -> tuple[int, int]:
    process = _run("fuzz.reached", module_of(target), target.name, str(corpus))
    if process.returncode != 0:
        raise RuntimeError(process.stderr)
    statements, reached = process.stdout.split()[-2:]
    return int(statements), int(reached)


def _worth_keeping(corpus: Path) -> list[bytes]:
    """Of what reached something new, the smallest; the seeds are made anew anyway."""
    found = [file.read_bytes() for file in corpus.iterdir() if not file.name.startswith("seed-")]
    small = sorted((data for data in found if 0 < len(data) <= KEPT_BYTES), key=len)
    return small[:: max(1, len(small) // KEPT_INPUTS)][:KEPT_INPUTS]


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
