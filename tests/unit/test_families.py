"""Every family through the one contract suite."""

import pytest

pytest.register_assert_rewrite("tests.contracts")

from tests.contracts import *  # noqa: E402, F403
