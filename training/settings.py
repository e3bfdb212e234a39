"""What `python -m training` is told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from proto.configuration import Settings
from training.recipe import ProfileName

Task = Literal[
    "all", "autoencoder", "text", "flow", "sizes", "guidance", "decoder", "export", "evaluate", "curves"
]


class TrainingSettings(Settings):
    """Trains the embedded model, stage after stage. Stopped, it goes on when it is run again."""

    model_config = SettingsConfigDict(env_prefix="FLUX_TRAINING_")

    stage: Task = Field(
        "all",
        description="one stage (autoencoder, text, flow, sizes, guidance, decoder), all of them and the"
        " export, export (what is there so far), evaluate (a model folder), or curves (a picture of each)",
    )
    folder: Path = Field(Path("training-run"), description="for checkpoints, curves and the model")
    profile: ProfileName = Field("cpu", description="how long and how wide: cpu, gpu, or tiny for tests")
    minutes: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="stop after so many, with a checkpoint; unset: at the end",
    )
    seed: int = Field(1, ge=0, lt=2**32, description="of everything random; 32 bits")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = Field(
        "auto", description="auto (a GPU if there is one), cpu or cuda"
    )
    threads: int = Field(
        1, ge=1, le=1024, description="of the CPU's arithmetic; another number gives other weights"
    )
    measure_steps: int = Field(500, ge=1, description="steps between two measurements with the scorer")
    model: Path | None = Field(None, description="evaluate: the model folder; unset: the exported one")
    prompts: int = Field(1000, ge=1, le=100_000, description="evaluate: held-out prompts")
    steps: int = Field(8, ge=1, le=100, description="evaluate: steps a picture")
    guidance: float = Field(3.5, ge=0, le=20, allow_inf_nan=False, description="evaluate: guidance")
    height: int = Field(256, ge=32, le=1024, description="evaluate: pixels")
    width: int = Field(256, ge=32, le=1024, description="evaluate: pixels")
    pairs: bool = Field(False, description="evaluate: two shapes with a relation, not one")
    terse: bool = Field(False, description="evaluate: scenes and words in which little is said")
    shuffled: bool = Field(
        False, description="evaluate: each picture gets another prompt than it is judged by"
    )
