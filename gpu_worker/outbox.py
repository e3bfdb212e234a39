"""What an event has led to, in order, until the shell gets it. Pure."""

from dataclasses import dataclass, field

from gpu_worker.actions import Action, SendToBroker
from proto.messages import ToBrokerFromWorker
from proto.notes import Note, NoteLevel


@dataclass(slots=True)
class Outbox:
    _actions: list[Action] = field(default_factory=list)

    def add(self, action: Action) -> None:
        self._actions.append(action)

    def send(self, broker: int, message: ToBrokerFromWorker) -> None:
        self._actions.append(SendToBroker(broker=broker, message=message))

    def note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))

    def take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
