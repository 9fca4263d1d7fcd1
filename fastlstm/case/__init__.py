"""A case, what runs and on what, in one line of text that every command takes and every result carries."""

from fastlstm.case.attention import AttentionCase
from fastlstm.case.conv import ConvCase
from fastlstm.case.grammar import parse
from fastlstm.case.rowwise import CELLS, Case
from fastlstm.case.words import CaseError, even

__all__ = ["CELLS", "AttentionCase", "Case", "CaseError", "ConvCase", "even", "parse"]
