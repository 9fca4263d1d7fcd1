"""Compare a backend with the oracles: the same code runs in the tests and in `fastlstm parity`; or your own implementation."""

from fastlstm.parity.cases import CASES
from fastlstm.parity.compare import LEVELS, Row, check, difference, find, skip
from fastlstm.parity.impl import Comparison, assert_parity
from fastlstm.parity.problems import DTYPES

__all__ = ["CASES", "DTYPES", "LEVELS", "Comparison", "Row", "assert_parity", "check", "difference", "find", "skip"]
