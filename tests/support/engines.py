"""Parameters for tests of promises that hold on both engines."""

import pytest

ENGINES = ["local", pytest.param("ray", marks=pytest.mark.ray)]
"""Both engines, for one test of each promise."""
RAY_IN_CHAOS = ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.chaos])]
"""Ray only in `make chaos`, because it takes seconds to start."""
