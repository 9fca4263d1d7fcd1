"""`fastlstm parity`."""


def parity() -> None:
    """Placeholder until the command lands."""
