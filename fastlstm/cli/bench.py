"""`fastlstm bench`."""


def bench() -> None:
    """Placeholder until the command lands."""
