"""The LSTM family: equations and derivation in README.md, oracle in reference.py, CPU gate math in cpu.py."""
