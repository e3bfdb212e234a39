"""The settings of those components that talk to each other over ZeroMQ."""

from pydantic import Field

from proto.configuration import ComponentSettings


class NetworkSettings(ComponentSettings):
    """Endpoints are fields of subclasses, and so are validated after what is here."""

    insecure_allow_unencrypted_network: bool = Field(
        False,
        description="let prompts, images and commands cross the network unencrypted, to and from whoever"
        " reaches the ports",
    )
