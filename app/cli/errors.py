"""Why a command could not start: one sentence for the person at the terminal, no traceback."""


class StartError(Exception):
    """The command ends with this message and exit status 1."""
