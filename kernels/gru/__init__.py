"""The GRU: equations and derivation in README.md, oracle in reference.py, CPU gate math in cpu.py."""

from fastlstm.kernels.variant import Slots, Variant

# r acts on the part of n that comes from h, so that n's two parts stand apart
SLOTS = Slots("nrzn", x=(0, 3), h=(1, 3))
GRU = Variant("gru", "gru", "rzn", ("h",), counterpart="GRU", own_slots=SLOTS, promotes=True)
