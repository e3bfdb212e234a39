"""How long each stage learns, how fast, and from how many pictures at a time. Without torch."""

from dataclasses import dataclass
from typing import Final, Literal

StageName = Literal["autoencoder", "text", "flow", "sizes", "guidance", "decoder"]
STAGES: Final[tuple[StageName, ...]] = ("autoencoder", "text", "flow", "sizes", "guidance", "decoder")
"""In the order in which they are needed."""

ProfileName = Literal["cpu", "gpu", "tiny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecipe:
    steps: int
    batch: int
    """Pictures or captions a step."""
    rate: float
    """The optimizers', at its height."""
    muon: bool = False
    """Whether a transformer's matrices learn by Muon."""
    warm_up: int = 100
    """Steps."""
    decay: float = 0.3
    """The last part of the steps, in which the rate falls to a hundredth."""
    other_sizes: float = 0.0
    """The part of the batches with pictures of other sizes than the one that the model is to be good at."""
    average: float = 0.998
    """Of the weights, exponential: what is kept. Shorter at the start."""

    def rate_at(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(0.01, left))

    def average_at(self, step: int) -> float:
        return min(self.average, (step + 1) / (step + 10))


NEEDS: Final[dict[StageName, tuple[StageName, ...]]] = {
    "autoencoder": (),
    "text": (),
    "flow": ("autoencoder", "text"),
    "sizes": ("flow",),
    "guidance": ("sizes",),
    "decoder": ("autoencoder",),
}
"""Those whose results a stage is trained with."""


def follows(name: StageName) -> set[StageName]:
    """The stages that are to be trained again when this one was."""
    direct = {each for each, needed in NEEDS.items() if name in needed}
    return direct.union(*(follows(each) for each in direct))


Profile = dict[StageName, StageRecipe]

PROFILES: Final[dict[ProfileName, Profile]] = {
    # One or two cores in the background, many hours.
    "cpu": {
        "autoencoder": StageRecipe(steps=6000, batch=32, rate=2e-3),
        "text": StageRecipe(steps=2500, batch=64, rate=3e-3),
        "flow": StageRecipe(steps=9600, batch=32, rate=2e-3, warm_up=200, decay=0.4, muon=True),
        "sizes": StageRecipe(steps=16_800, batch=32, rate=1.5e-3, decay=0.4, other_sizes=0.7, muon=True),
        "guidance": StageRecipe(steps=300, batch=32, rate=3e-4, other_sizes=0.5, average=0.99, muon=True),
        "decoder": StageRecipe(steps=1200, batch=16, rate=5e-4),
    },
    # A data centre's GPU for a quarter of an hour. Not tried yet.
    "gpu": {
        "autoencoder": StageRecipe(steps=4000, batch=128, rate=2e-3),
        "text": StageRecipe(steps=2000, batch=512, rate=2e-3),
        "flow": StageRecipe(steps=5000, batch=512, rate=2e-3, warm_up=300, average=0.999, muon=True),
        "sizes": StageRecipe(steps=3000, batch=512, rate=1.5e-3, other_sizes=0.6, average=0.999, muon=True),
        "guidance": StageRecipe(steps=1000, batch=256, rate=3e-4, other_sizes=0.5, average=0.99, muon=True),
        "decoder": StageRecipe(steps=2000, batch=64, rate=5e-4),
    },
    # For tests: learns nothing.
    "tiny": {
        name: StageRecipe(steps=4, batch=2, rate=1e-3, warm_up=2, other_sizes=0.5, muon=True)
        for name in STAGES
    },
}
