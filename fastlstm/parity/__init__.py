"""Compare a backend with the oracles: the same code runs in the tests and in `fastlstm parity`."""

from fastlstm.parity.cases import Case
from fastlstm.parity.compare import DTYPES, LEVELS, Row, check, difference, skip
from fastlstm.parity.problems import CASES

__all__ = ["CASES", "DTYPES", "LEVELS", "Case", "Row", "check", "difference", "skip"]
