"""The clients of a world: they call, leave, and call again, as clients do."""

import dataclasses
from typing import TYPE_CHECKING, Final

from simulation.calls import Call, Wish, wish
from simulation.engine import HAUNTED, HUNGRY, POISON

from frontend.actions import ImageDelivered, JobGivenUp, JobRefused
from proto.failures import RefusalReason

if TYPE_CHECKING:
    from simulation.plan import Plan
    from simulation.world import World

DEADLINES_S: Final = (1.0, 5.0, 15.0, 30.0, 30.0, 60.0)


class Clients:
    def __init__(self, world: "World", plan: "Plan") -> None:
        self._world, self._plan, self._rng = world, plan, world.rng
        self._errands: dict[bytes, tuple[Wish, int]] = {}
        """By call: what its client will do when it is over, and how often still."""
        self._number = 0
        self.are_open = False
        world.on_call_over = self._call_over

    def come(self) -> None:
        """From now on, until they are told to stop."""
        self.are_open = True
        self._arrive()

    def _arrive(self) -> None:
        if not self.are_open:
            return
        self._number += 1
        if self._rng.random() < self._plan.keyed:
            self._begin_errand()
        else:
            self._call(self._new_wish(repeats=None))
        self._world.after(self._rng.expovariate(1 / self._plan.call_gap_s), self._arrive)

    def _new_wish(self, repeats: str | None, *, detach: bool = False) -> Wish:
        rng, plan = self._rng, self._plan
        words = ""
        if rng.random() < plan.bad_prompts:
            words = " " + rng.choice((POISON, HUNGRY, HUNGRY, HAUNTED))
        number = rng.randrange(plan.keys)
        return wish(
            f"key-{number}",
            f"picture {self._number}{words}",
            steps=rng.randint(1, plan.steps_max),
            seed=rng.getrandbits(64),
            size=rng.choice((16, 512)),
            key_limit=plan.key_limit + plan.greedy * (number % 2),
            queue_share=0.5 if plan.greedy and number % 2 else 1.0,
            repeats=repeats,
            detach=detach,
        )

    def _call(self, wanted: Wish, repeats: int = 0) -> Call | None:
        """`repeats`: how often the client may call again."""
        frontends = [each for each in self._world.frontends if each.is_open]
        if not frontends or not self.are_open:
            return None
        rng = self._rng
        call = self._world.call(rng.choice(frontends), wanted, rng.choice(DEADLINES_S))
        if not call.is_open:
            return call
        if repeats:
            self._errands[call.job_id] = (wanted, repeats - 1)
        if rng.random() < (0.6 if wanted.detach else 0.2):
            self._world.after(rng.uniform(0.01, 6.0), call.frontend.leave, call)
        elif rng.random() < 0.3:  # Otherwise the frontend alone notices that its time is over.
            self._world.after(
                call.deadline_at - call.opened_at + rng.uniform(-0.01, 0.01), self._hang_up, call
            )
        return call

    @staticmethod
    def _hang_up(call: Call) -> None:
        call.frontend.leave(call)

    # --- Repeats -------------------------------------------------------------------------------

    def _begin_errand(self) -> None:
        """An image that a client insists on, and others who come with the same idempotency key."""
        rng, world = self._rng, self._world
        wanted = self._new_wish(repeats=f"repeat {self._number}", detach=rng.random() < 0.3)
        self._call(wanted, rng.randint(0, 4))
        if rng.random() < 0.4:
            world.after(rng.uniform(0.0, 5.0), self._call, self._maybe_detached(wanted), rng.randint(0, 1))
        if rng.random() < 0.2:
            world.after(rng.uniform(0.0, 15.0), self._call, self._with_other_parameters(wanted))
        if rng.random() < 0.1:
            world.after(rng.uniform(0.0, 5.0), self._call, self._of_other_key(wanted))

    def _maybe_detached(self, wanted: Wish) -> Wish:
        return dataclasses.replace(wanted, detach=self._rng.random() < 0.3)

    def _with_other_parameters(self, wanted: Wish) -> Wish:
        other = wish(wanted.key, f"{wanted.job.prompt}, but red", steps=wanted.job.parameters.steps)
        return dataclasses.replace(wanted, job=other.job)

    def _of_other_key(self, wanted: Wish) -> Wish:
        """The same hash and the same image for another API key: frontends make no such, but who knows.

        A key has the same limits in all its calls: these are not of the one whose image it is.
        """
        return dataclasses.replace(
            wanted,
            key=f"stranger-{self._rng.randrange(2)}",
            key_limit=self._plan.key_limit,
            queue_share=1.0,
        )

    def _call_over(self, call: Call) -> None:
        errand = self._errands.pop(call.job_id, None)
        if errand is None or not self.are_open:
            return
        wanted, left = errand
        patience_s = self._patience_s(call)
        if patience_s is not None:
            self._world.after(patience_s, self._call, wanted, left)

    def _patience_s(self, call: Call) -> float | None:
        """How long a client waits before it calls again; None if it does not."""
        rng = self._rng
        match call.end:
            case ImageDelivered():
                return rng.choice((rng.uniform(0.01, 2.0), rng.uniform(2.0, 40.0)))
            case JobRefused(reason=RefusalReason.IDEMPOTENCY_MISMATCH):
                return None
            case JobRefused(retry_after_s=retry_after_s):
                return 1.0 if retry_after_s is None else retry_after_s
            case JobGivenUp():
                return rng.uniform(0.05, 3.0)
            case None:  # It left, or its frontend is gone.
                return rng.choice((rng.uniform(0.0, 1.0), rng.uniform(1.0, 30.0)))
