"""Every test runs on one thread and from the same seed; a test that is about threads sets their number itself."""

import pytest
import torch
from hypothesis import settings

# the same examples at every run; a slow machine is no failure
settings.register_profile("fastlstm", derandomize=True, deadline=None)
settings.load_profile("fastlstm")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
