"""`fastlstm info`."""


def info() -> None:
    """Placeholder until the command lands."""
