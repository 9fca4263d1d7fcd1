"""The LSTM family: equations and derivation in README.md, oracle in reference.py, CPU gate math in cpu.py."""

from fastlstm.kernels.variant import Variant

LSTM = Variant("lstm", "lstm", "ifgo", ("h", "c"), projects=True, counterpart="LSTM")
PEEPHOLE_LSTM = Variant("peephole_lstm", "lstm", "ifgo", ("h", "c"), peepholes="ifo", projects=True)
CIFG_LSTM = Variant("cifg_lstm", "lstm", "igo", ("h", "c"), projects=True)
CIFG_PEEPHOLE_LSTM = Variant("cifg_peephole_lstm", "lstm", "igo", ("h", "c"), peepholes="io", projects=True)
