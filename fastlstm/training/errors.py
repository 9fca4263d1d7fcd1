"""What the command line turns into one line on stderr."""


class TrainError(Exception):
    """An option, a text or a checkpoint can't be used: the message says what was expected, what was found, and why."""

    exit_code = 2


class TrainingFailed(TrainError):
    """A run that had begun can't go on."""

    exit_code = 1
