"""The errors that end a command with one message instead of a traceback."""


class NanochatError(Exception):
    """Something the user can mend.

    `message` says what is wrong, `remedy` what to type or change. Commands print both on one
    line of standard error and exit with `status`.
    """

    status = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}. {remedy}" if remedy else message)


class UsageError(NanochatError):
    """Wrong use: an unknown name, a missing file, a combination that cannot run."""

    status = 2
