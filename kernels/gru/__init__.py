"""The GRU: equations and derivation in README.md, oracle in reference.py, CPU gate math in cpu.py."""

from fastlstm.kernels.variant import Variant

GRU = Variant("gru", "gru", "rzn", ("h",), counterpart="GRU", promotes=True)
