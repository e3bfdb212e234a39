"""What a PNG says about how it was made."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
from samples.wire import CARD, PARAMETERS, identifier

from gpu_worker.engines.engine import EngineJob
from gpu_worker.png import encode_png
from gpu_worker.receipt import ReceiptWriter

MODEL = dataclasses.replace(
    CARD, name="FLUX.1-dev", revision="0ef5fff", quantization="hqq 4 bit", versions="torch 2.13.0"
)
JOB = EngineJob(
    execution_id=identifier("execution"),
    job_id=identifier("job"),
    prompt="eine Katze 猫",
    parameters=dataclasses.replace(
        PARAMETERS, seed=2**64 - 1, height=2, width=3, guidance=3.0999999046325684
    ),
    attempts=2,
)


def texts_of(writer: ReceiptWriter) -> dict[str, str]:
    png = encode_png(np.zeros((2, 3, 3), dtype=np.uint8), writer.texts(JOB))
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return dict(image.text)


def writer(*, with_prompt: bool = True) -> ReceiptWriter:
    return ReceiptWriter(worker_id="worker", model=MODEL, with_prompt=with_prompt)


def test_all_that_made_it_can_be_read_from_the_picture():
    texts = texts_of(writer())
    assert json.loads(texts["Receipt"]) == {
        "seed": 2**64 - 1,
        "steps": 4,
        "guidance_scale": 3.1,
        "height": 2,
        "width": 3,
        "model": "FLUX.1-dev",
        "revision": "0ef5fff",
        "quantization": "hqq 4 bit",
        "precision": "none",
        "versions": "torch 2.13.0",
        "worker_id": "worker",
        "attempts": 2,
    }
    assert texts["Description"] == "eine Katze 猫"
    assert texts["Software"].startswith("flux-server")


def test_the_prompt_can_be_left_out():
    texts = texts_of(writer(with_prompt=False))
    assert set(texts) == {"Software", "Receipt"}
    assert "Katze" not in "".join(texts.values())


def test_the_same_execution_has_the_same_receipt():
    assert writer().texts(JOB) == writer().texts(JOB)
