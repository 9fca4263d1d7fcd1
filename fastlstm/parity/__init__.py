"""Compare a backend with the oracles: the same code runs in the tests and in `fastlstm parity`."""

from fastlstm.parity.cases import CASES, Case
from fastlstm.parity.compare import DTYPES, LEVELS, Row, check, difference, skip

__all__ = ["CASES", "DTYPES", "LEVELS", "Case", "Row", "check", "difference", "skip"]
