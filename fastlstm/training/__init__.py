"""Trains a character language model: what `fastlstm train` runs."""
