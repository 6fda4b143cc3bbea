"""What a person at the keyboard can mend, and how a run ends early."""


class VGGFlaxError(Exception):
    """Something the person at the keyboard can mend; the message says how."""


class ConfigError(VGGFlaxError):
    """A setting that is unknown, of the wrong type, or out of range."""


class Interrupted(VGGFlaxError):
    """SIGINT or SIGTERM came, and what was done is saved.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
