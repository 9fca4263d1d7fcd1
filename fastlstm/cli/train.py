"""`fastlstm train`."""


def train() -> None:
    """Placeholder until the command lands."""
