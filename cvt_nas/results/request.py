"""Requests of users to a running search, and their answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Self

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cvt_nas.arch import ArchConfig, arch_from_dict, arch_to_dict
from cvt_nas.results.parsing import first_problem

Ask = Literal["stop", "trials", "try"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request to a search.

    Args:
        id: Identifies the request in the run. Ids sort by the time of the request.
        created: Time of the request, in ISO 8601.
        ask: `stop` ends the search in order, `trials` raises the number of trials, `try` trains an architecture next.
        trials: Number of trials that the search should have in all, for `trials`.
        arch: Architecture to train, for `try`.
    """

    id: str
    created: str
    ask: Ask
    trials: int | None = None
    arch: ArchConfig | None = None

    def describe(self) -> str:
        """The request in words, for example `try 3f2a91c0`."""
        if self.arch is not None:
            return f"try {self.arch.id}"
        return "stop in order" if self.ask == "stop" else f"{self.trials} trials in all"

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id,
            "created": self.created,
            "ask": self.ask,
            **({} if self.trials is None else {"trials": self.trials}),
            **({} if self.arch is None else {"arch": arch_to_dict(self.arch)}),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Raises ValueError if `tree` is no request."""
        found = _validated(_REQUEST, tree)
        arch = found.get("arch")
        if (found["ask"] == "try") != (arch is not None) or (found["ask"] == "trials") != ("trials" in found):
            raise ValueError(f"a request to {found['ask']} has other keys")
        return cls(**{**found, "arch": None if arch is None else arch_from_dict(arch)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer of a search to a request.

    Args:
        id: Id of the request.
        trial: Number of the trial that trains the requested architecture.
        refused: Reason why the request was refused.
    """

    id: str
    trial: int | None = None
    refused: str | None = None

    def describe(self) -> str:
        if self.refused is not None:
            return f"refused: {self.refused}"
        return "done" if self.trial is None else f"taken by trial {self.trial}"

    def to_json(self) -> dict[str, object]:
        more = {"trial": self.trial, "refused": self.refused}
        return {"id": self.id, **{name: value for name, value in more.items() if value is not None}}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Raises ValueError if `tree` is no answer."""
        return cls(**_validated(_ANSWER, tree))


class _Request(TypedDict):
    id: str
    created: str
    ask: Ask
    trials: NotRequired[int]
    arch: NotRequired[dict[str, Any]]


class _Answer(TypedDict):
    id: str
    trial: NotRequired[int]
    refused: NotRequired[str]


_REQUEST, _ANSWER = TypeAdapter(_Request), TypeAdapter(_Answer)


def _validated(adapter: TypeAdapter[Any], tree: Mapping[str, Any]) -> Any:
    try:
        return adapter.validate_python(dict(tree), strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
