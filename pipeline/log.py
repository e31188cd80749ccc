"""The one logger of the program: `ddpm`, with one handler on stderr."""

import logging

__all__ = ["logger"]

logger = logging.getLogger("ddpm")
