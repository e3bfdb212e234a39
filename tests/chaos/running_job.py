"""A call whose job a worker has begun, and cannot finish before it is let go."""

from dataclasses import dataclass
from typing import Any, Final, Self

from processes.stack import Component, Drawn, OpenCall, Stack, content_of

from gpu_worker.engines.fake import prompt_digest

SEED: Final = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    prompt: str
    call: OpenCall
    worker: Component
    job_id: str
    execution_id: str

    @classmethod
    def begin(cls, stack: Stack, prompt: str, **wishes: Any) -> Self:
        """While the workers are held."""
        call = stack.client().begin(prompt, seed=SEED, **wishes)
        row = stack.until_running()
        started = stack.broker.until_event("job dispatched", job_id=row.job_id)
        return cls(
            prompt=prompt,
            call=call,
            worker=stack.workers[row.worker_id],
            job_id=row.job_id,
            execution_id=started["execution_id"],
        )

    def own_image(self) -> Drawn:
        """What the caller gets in the end, and it is what it asked for."""
        image = self.call.image()
        content = content_of(image)
        assert (content.prompt_digest, content.seed) == (prompt_digest(self.prompt), SEED)
        return image

    def first_image(self) -> Drawn:
        """Likewise, drawn by the execution that has begun."""
        image = self.own_image()
        assert content_of(image).execution_id.hex() == self.execution_id, "it was drawn again"
        return image

    def other_image(self) -> Drawn:
        """Likewise, drawn by another execution, as the first one was lost."""
        image = self.own_image()
        assert content_of(image).execution_id.hex() != self.execution_id, "it comes from the dead"
        return image
