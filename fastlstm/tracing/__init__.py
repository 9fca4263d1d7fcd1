"""Which recurrent calls a program makes, how often, and how long they take."""

from fastlstm.tracing.trace import Trace, trace

__all__ = ["Trace", "trace"]
