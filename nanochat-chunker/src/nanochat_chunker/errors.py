"""The errors that end the command with one message instead of a traceback."""


class ChunkerError(Exception):
    """Something the user can mend: what is wrong, then what to do about it."""

    status = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}. {remedy}" if remedy else message)


class UsageError(ChunkerError):
    """Wrong use: a missing folder, a number out of range, an output that is already there."""

    status = 2
