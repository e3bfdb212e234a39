"""The settings of `python -m gpu_worker prefetch`."""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from gpu_worker.folder_setting import NamedFolder
from proto.configuration import Settings

FLUX_DEV_COMMIT: Final = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
"""Of black-forest-labs/FLUX.1-dev on the Hub."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_URL: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:/[^\s?#]*)?")


def _repository(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError("must be OWNER/NAME")
    return value


def _revision(value: str) -> str:
    if _REVISION.fullmatch(value) is None:
        raise ValueError("must be a commit, a branch or a tag")
    return value


def _endpoint(value: str) -> str:
    if _URL.fullmatch(value) is None:
        raise ValueError("must be http://HOST or https://HOST, with or without a port")
    return value.rstrip("/")


class PrefetchSettings(Settings):
    """Download FLUX.1-dev from the Hub into a folder that workers run from.

    Stopped or cut off, it goes on the next time. The token comes from HF_TOKEN or from `hf auth login`.
    """

    model_config = SettingsConfigDict(env_prefix="FLUX_PREFETCH_", populate_by_name=True)

    repository: Annotated[str, AfterValidator(_repository)] = Field(
        "black-forest-labs/FLUX.1-dev", description="OWNER/NAME of a FLUX model in diffusers' layout"
    )
    revision: Annotated[str, AfterValidator(_revision)] = Field(
        FLUX_DEV_COMMIT, description="its commit, or a branch or tag, which means the commit it has now"
    )
    target: NamedFolder = Field(Path("hub/FLUX.1-dev"), description="folder that the files go to")
    verify: bool = Field(
        False, description="read a folder that is whole already, and compare all digests with its manifest"
    )
    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "https://huggingface.co", validation_alias="hf_endpoint", description="the Hub, or a mirror of it"
    )
