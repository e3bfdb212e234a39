"""How settings are read, and what is said about those that cannot be used."""

import os
from typing import Annotated, Literal

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from proto.configuration import ComponentSettings, load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.timing import Timing


class ExampleSettings(ComponentSettings):
    """An example."""

    model_config = SettingsConfigDict(env_prefix="FLUX_EXAMPLE_")

    queue_limit: int = Field(3, ge=0, le=10, description="jobs that may wait [jobs]")
    loud: bool = Field(False, description="whether it makes a noise")
    colour: Literal["red", "green"] = Field("red", description="colour of the example")
    password: Annotated[SecretStr, Field(min_length=4)] = Field(
        SecretStr("unset"), validation_alias="the_password", description="what nobody may see"
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    variables = {"PATH": os.environ.get("PATH", "")}
    monkeypatch.setattr("os.environ", variables)
    return variables


def load(*argv: str) -> ExampleSettings:
    return load_settings(ExampleSettings, argv, "example")


def complaint(capsys, *argv: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        load(*argv)
    assert ended.value.code == EXIT_BAD_CONFIGURATION == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines.pop() == "example: for all settings: --help"
    return lines


def test_nothing_needs_to_be_set():
    settings = load()
    assert (settings.queue_limit, settings.log_level, settings.loud) == (3, "info", False)
    assert settings.timing == Timing()


def test_the_environment_sets_and_the_command_line_wins(environment):
    environment |= {"FLUX_EXAMPLE_QUEUE_LIMIT": "5", "FLUX_EXAMPLE_COLOUR": "green"}
    assert (load().queue_limit, load().colour) == (5, "green")
    settings = load("--queue-limit", "7")
    assert (settings.queue_limit, settings.colour) == (7, "green")


def test_switches(environment):
    assert load("--loud").loud
    environment["FLUX_EXAMPLE_LOUD"] = "true"
    assert load().loud
    assert not load("--no-loud").loud


def test_the_time_scale_is_one_for_all_limits():
    assert load("--time-scale", "0.2").timing == Timing().scaled(0.2)


def test_settings_of_other_programs_do_not_matter(environment):
    environment |= {"FLUX_OTHER_QUEUE_LIMIT": "x", "QUEUE_LIMIT": "x", "FLUX_EXAMPLE_UNHEARD_OF": "x"}
    assert load().queue_limit == 3


def test_a_variable_that_is_no_setting_is_named_and_ignored(environment, capsys):
    environment |= {"FLUX_EXAMPLE_QEUE_LIMIT": "5", "FLUX_OTHER_X": "x", "FLUX_EXAMPLE_COLOUR": "green"}
    assert load().queue_limit == 3
    assert capsys.readouterr().err == "example: FLUX_EXAMPLE_QEUE_LIMIT is not a setting, and is ignored\n"


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        load().queue_limit = 4


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("queue-limit", "11", "less than or equal to 10"),
        ("queue-limit", "-1", "greater than or equal to 0"),
        ("queue-limit", "many", "valid integer"),
        ("queue-limit", "1.5", "valid integer"),
        ("queue-limit", "", "valid integer"),
        ("colour", "blue", "'red' or 'green'"),
        ("log-level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("log-format", "xml", "'auto', 'console' or 'json'"),
        ("time-scale", "0", "greater than 0"),
        ("time-scale", "nan", ""),
        ("time-scale", "inf", ""),
        ("time-scale", "-inf", ""),
    ],
)
@pytest.mark.parametrize("by", ["command line", "environment"])
def test_a_bad_value_is_named_with_what_is_allowed(capsys, environment, by, flag, value, allowed):
    variable = f"FLUX_EXAMPLE_{flag.replace('-', '_').upper()}"
    if by == "environment":
        environment[variable] = value
        lines = complaint(capsys)
    else:
        lines = complaint(capsys, f"--{flag}={value}")
    assert len(lines) == 1
    assert lines[0].startswith(f"example: --{flag} ({variable}): {value!r}: ")
    assert allowed in lines[0]


def test_all_bad_values_are_named_at_once(capsys):
    lines = complaint(capsys, "--queue-limit", "11", "--colour", "blue", "--time-scale", "0")
    assert len(lines) == 3


def test_an_unknown_flag_is_a_bad_configuration(capsys):
    assert "--queue-limits" in complaint(capsys, "--queue-limits", "3")[0]


def test_a_stray_argument_is_a_bad_configuration_and_may_be_half_a_key(capsys):
    (line,) = complaint(capsys, "--the-password", "one,", "hsh")
    assert line == "example: error parsing CLI: unrecognized arguments: …"
    assert "stray" in complaint(capsys, "stray")[0]


def test_an_unknown_argument_is_told_in_one_line(capsys):
    (line,) = complaint(capsys, "--col\x1cour\n" + "x" * 1000)
    assert "--col\\x1cour\\nxxx" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ["--the-pasword=hsh"],
        ["--the-pasword", "hsh"],
        ["--the-pasword", "-xhsh"],
        ["--tracing=hsh"],
        ["--t=hsh"],
    ],
)
def test_what_a_misspelt_option_or_a_switch_says_is_not_shown(capsys, arguments):
    (line,) = complaint(capsys, *arguments)
    assert arguments[0].partition("=")[0] in line
    assert "hsh" not in line


@pytest.mark.parametrize("by", ["command line", "environment"])
def test_a_secret_is_not_shown(capsys, environment, by):
    if by == "environment":
        environment["THE_PASSWORD"] = "hsh"
        lines = complaint(capsys)
    else:
        lines = complaint(capsys, "--the-password=hsh")
    assert "hsh" not in "".join(lines)
    assert "(hidden)" in lines[0]
    assert "THE_PASSWORD" in lines[0]


def test_a_secret_is_not_in_the_settings_text(environment):
    environment["THE_PASSWORD"] = "hushhush"
    assert "hushhush" not in f"{load()!r} {load()}"


def test_help_explains_each_setting(capsys):
    with pytest.raises(SystemExit) as ended:
        load("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "jobs that may wait [jobs] [FLUX_EXAMPLE_QUEUE_LIMIT] (default: 3)" in text
    assert "--log-level" in text
    assert "[FLUX_EXAMPLE_LOG_LEVEL]" in text
    assert "[THE_PASSWORD]" in text


class Between(ComponentSettings):
    own: int = Field(1, description="of the class between")


class Component(Between):
    model_config = SettingsConfigDict(env_prefix="FLUX_COMPONENT_")


def test_help_names_each_variable_once(capsys):
    with pytest.raises(SystemExit):
        load_settings(Component, ["--help"], "component")
    told = " ".join(capsys.readouterr().out.split())
    assert "of the class between [FLUX_COMPONENT_OWN]" in told
    assert "lowest level that is logged [FLUX_COMPONENT_LOG_LEVEL]" in told
    assert "[LOG_LEVEL]" not in told


def test_a_value_that_is_a_whole_file_is_told_in_part(capsys):
    (line,) = complaint(capsys, "--colour", "x" * 100_000)
    assert line.startswith("example: --colour (FLUX_EXAMPLE_COLOUR): 'xxx")
    assert "… (100002 characters): Input should be" in line
    assert len(line) < 400
