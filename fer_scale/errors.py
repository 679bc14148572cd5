"""The errors that fer_scale raises on purpose.

Everything else that escapes a verb is a fault of the program: the command line ends with 1 for those and
with 2 for an `InputError`.
"""


class FerScaleError(Exception):
    """Base of the errors that fer_scale raises itself; `str(error)` is one line meant for the user."""


class InputError(FerScaleError):
    """What the user gave cannot be used.

    The message is one line, ``<received>; expected <expected>; <do>``.

    Args:
        received: what was found, with the value or path itself, e.g. ``"there is no path faces/"``.
        expected: what would have been accepted, e.g. ``"a folder with one folder a class"``.
        do: what to do about it, in the imperative, e.g. ``"check the spelling"``.
    """

    def __init__(self, received: str, expected: str, do: str) -> None:
        self.received = received
        self.expected = expected
        self.do = do
        super().__init__(received, expected, do)

    def __str__(self) -> str:
        return " ".join(f"{self.received}; expected {self.expected}; {self.do}".split())


class MissingPathError(InputError):
    """A path, local or s3://, that should have been read does not exist."""

    def __init__(
        self,
        received: str,
        expected: str = "a file or folder that exists",
        do: str = "check the spelling of the path",
    ) -> None:
        super().__init__(received, expected, do)
