"""`make demo` without make: one image from the real stack with the embedded model."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from samples.pictures import names_of, pixels_of

DEMO_LIMIT_S = 150.0


async def run_demo(folder: Path, *arguments: str) -> tuple[int, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_") and k != "API_KEYS"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.demo", *arguments),
        cwd=folder,
        env={**inherited, "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), DEMO_LIMIT_S)
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.timeout(2 * DEMO_LIMIT_S)
async def test_it_draws_an_image_and_says_where_it_is(tmp_path: Path) -> None:
    status, output = await run_demo(tmp_path)
    assert status == 0, output
    png = (tmp_path / "demo.png").read_bytes()
    assert pixels_of(png).shape == (256, 256, 3)
    assert names_of(png) == ("white", "red", "heart")
    assert str(tmp_path / "demo.png") in output
    assert "make serve" in output
    assert not list(tmp_path.glob("flux-*")), "the socket folder is left"


async def test_without_a_model_it_says_why(tmp_path: Path) -> None:
    status, output = await run_demo(tmp_path, "--engine", "flux", "--model-dir", "/no/such/folder")
    assert status != 0
    assert "/no/such/folder" in output
    assert not (tmp_path / "demo.png").exists()
