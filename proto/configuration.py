"""How every program reads its settings: the environment, then the command line, which wins.

A component declares a subclass of `ComponentSettings`, any other program one of `Settings`; each field has a
description with its unit.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.timing import Timing

SHOWN_MAX: Final = 200
"""Characters of a bad value that are told: somebody may have pasted a file."""
_VARIABLE: Final = re.compile(r" \[[A-Z0-9_]+\]$")

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def environment_name(cls: "type[Settings]", name: str) -> str:
    """The variable that sets this field."""
    alias = cls.model_fields[name].validation_alias
    if isinstance(alias, str):
        return alias.upper()
    prefix = cls.model_config.get("env_prefix", "")
    return f"{prefix}{name}".upper()


class Settings(BaseSettings):
    """What all programs have in common."""

    owns_prefix: ClassVar[bool] = True
    """Every variable with its prefix is meant to be one of its settings."""

    model_config = SettingsConfigDict(
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="unset",
        cli_exit_on_error=False,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            # A class between has written its own, without the prefix.
            own = _VARIABLE.sub("", field.description or "")
            field.description = f"{own} [{environment_name(cls, name)}]"
        cls.model_rebuild(force=True)


class ComponentSettings(Settings):
    """What all components have in common."""

    log_level: LogLevel = Field("info", description="lowest level that is logged")
    log_format: LogFormat = Field(
        "auto", description="console for people, json for machines; auto: console on a terminal"
    )
    tracing: bool = Field(
        False,
        description="send spans of each job to an OpenTelemetry collector, by the standard OTEL_ variables",
    )
    time_scale: float = Field(
        1.0,
        gt=0,
        le=10,
        allow_inf_nan=False,
        description="factor on all of the protocol's time limits; for tests, and the same everywhere",
    )

    @property
    def timing(self) -> Timing:
        return Timing().scaled(self.time_scale)


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], argv: Sequence[str] | None, program: str) -> S:
    """The settings from the environment and `argv` (the process's own arguments if None).

    Ends the process with status 78 and one line for each bad value; with 0 after `--help`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            cls, cli_parse_args=arguments, cli_prog_name=program, root_parser=None
        )
        settings = cls(_cli_settings_source=source)
        if cls.owns_prefix:
            _warn_of_unknown_variables(cls, program)
        return settings
    except ValidationError as error:
        lines = [_explain(cls, dict(problem)) for problem in error.errors(include_url=False)]
    except SettingsError as error:
        lines = [_in_one_line(_without_values(str(error), arguments))]
    for line in lines:
        print(f"{program}: {line}", file=sys.stderr)
    print(f"{program}: for all settings: --help", file=sys.stderr)
    raise SystemExit(EXIT_BAD_CONFIGURATION)


def _warn_of_unknown_variables(cls: type[Settings], program: str) -> None:
    """A misspelt one would otherwise be ignored in silence. No error: Kubernetes sets some of its own."""
    prefix = cls.model_config.get("env_prefix", "").upper()
    known = {environment_name(cls, name) for name in cls.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(prefix) and name.upper() not in known:
            print(f"{program}: {_in_one_line(name)} is not a setting, and is ignored", file=sys.stderr)


def _explain(cls: type[Settings], problem: dict[str, Any]) -> str:
    """One line: the setting's names, its value, and what is allowed."""
    location = str(problem["loc"][0]) if problem["loc"] else ""
    name, field = _field_at(cls, location)
    reason = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if field is None:
        return reason
    title = f"--{name.replace('_', '-')} ({environment_name(cls, name)})"
    if problem["type"] == "missing":
        return f"{title}: missing; expected: {str(field.description).rsplit(' [', 1)[0]}"
    value = "(hidden)" if _is_secret(field) else _shown(problem.get("input"))
    return f"{title}: {value}: {reason}"


def _without_values(error: str, arguments: Sequence[str]) -> str:
    """What stands behind an option that is none, is not whole or takes no value may be a key.

    So may what stands behind the value of another one. argparse quotes all of it.
    """
    said, unrecognized, rest = error.partition("unrecognized arguments: ")
    if not unrecognized:
        error = re.sub(r"(ignored explicit argument) .*", r"\1 …", error, flags=re.DOTALL)
        return re.sub(r"(ambiguous option: [^\s=]*)=.* (could match)", r"\1 \2", error, flags=re.DOTALL)
    first, *others = rest.split(" ")
    is_command = first == arguments[0] and not first.startswith("-")  # A misspelt one, perhaps.
    told = first if is_command else _option(first)
    return said + unrecognized + " ".join([told, *map(_option, others)])


def _option(word: str) -> str:
    """Keys may begin with a hyphen, though hardly with two."""
    return word.partition("=")[0] if word.startswith("--") else "…"


def _in_one_line(text: str) -> str:
    """What arguments and names of variables have of control characters would break it."""
    text = "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)
    return _cut(text)


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}… ({len(text)} characters)"


def _field_at(cls: type[Settings], location: str) -> tuple[str, FieldInfo | None]:
    for name, field in cls.model_fields.items():
        if location.lower() in {name, environment_name(cls, name).lower()}:
            return name, field
    return location, None


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr
