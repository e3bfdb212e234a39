"""With which status a component's process ends, beside 0."""

from typing import Final

EXIT_BAD_CONFIGURATION: Final = 78
"""EX_CONFIG of sysexits.h: starting again cannot help until a setting changes."""
EXIT_CANNOT_START: Final = 69
"""EX_UNAVAILABLE: what the component needs is not to be had, a port for example."""
EXIT_INTERRUPTED: Final = 130
"""What shells say of a program that Ctrl-C has ended: 128 + SIGINT."""
