"""What has something in common, found without looking at everything else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Name = TypeVar("Name")
Id = TypeVar("Id")
Member = TypeVar("Member")


@dataclass(slots=True)
class Groups(Generic[Name, Id, Member]):
    """The members of each group by their id, who came first at the start. An empty group is forgotten."""

    _groups: dict[Name, dict[Id, Member]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Name, Mapping[Id, Member]]]:
        return iter(self._groups.items())

    def of(self, name: Name) -> Mapping[Id, Member]:
        return self._groups.get(name) or {}

    def add(self, name: Name, member_id: Id, member: Member) -> None:
        self._groups.setdefault(name, {})[member_id] = member

    def remove(self, name: Name, member_id: Id) -> None:
        """Raises KeyError if it is not there."""
        group = self._groups[name]
        del group[member_id]
        if not group:
            del self._groups[name]
