"""What an engine is, and the words in which it talks to its process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from proto.messages import ImageParameters, JobPhase, ModelCard

if TYPE_CHECKING:  # the worker's parent process imports this module, and has no use for numpy
    import numpy as np
    from numpy.typing import NDArray

RgbImage: TypeAlias = "NDArray[np.uint8]"
"""Shape (height, width, 3)."""

LoadProgress = Callable[[str, int], None]
"""Called with what is being loaded, and how much of the whole is done in percent."""

JobProgress = Callable[[JobPhase, int], None]
"""Called on entering a phase and after each denoising step, with the number of finished steps.

Raises `JobCancelled` when the job is not wanted any more; the engine lets it pass through.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """One execution of one job."""

    execution_id: bytes
    job_id: bytes
    prompt: str
    parameters: ImageParameters
    attempts: int = 1
    """Executions of the job so far, with this one."""


class JobCancelled(Exception):
    """Raised out of `JobProgress` to stop an engine between two steps."""


class OutOfDeviceMemory(Exception):
    """The device had too little memory for this job; the engine has freed what it could and goes on."""


class NonFiniteImage(Exception):
    """The model produced NaN or infinity."""


class EngineBroken(Exception):
    """The engine cannot go on in this process (a poisoned device context): the process must be replaced."""


class ModelUnusable(Exception):
    """The model cannot be loaded, now or later, unless somebody changes something. The text says what."""


class NotEnoughFreeMemory(Exception):
    """The model does not fit into the memory that is free now; it may later.

    The text says what takes it. Clients see it: it is our own, without what a library said.
    """


@dataclass(frozen=True, slots=True)
class Drawing:
    """What an engine made of a job."""

    image: "RgbImage"
    text_cached: bool | None = None
    """Whether the prompt had been encoded before; None where prompts are not encoded."""
    png: bytes | None = None
    """The finished file, where the engine has it already."""


class Engine(Protocol):
    """Runs one job at a time. Used from one thread of one process."""

    def load(self, on_progress: LoadProgress) -> ModelCard:
        """Bring the model to the device. Raises `ModelUnusable`, `NotEnoughFreeMemory`."""

    def warm_up(self) -> None:
        """Draw one image, so that the first job is as fast as the next.

        Raises `OutOfDeviceMemory`, with a text as that of `NotEnoughFreeMemory`.
        """

    def generate(self, job: EngineJob, on_progress: JobProgress) -> Drawing:
        """Draw an image of exactly the size asked for.

        Raises:
            JobCancelled: out of `on_progress`.
            OutOfDeviceMemory, NonFiniteImage: this job failed; the engine goes on.
            EngineBroken: the process must be replaced.
        """
