"""The contract of all algorithms, see ``tests/contract.py``."""

import pytest

pytest.register_assert_rewrite("tests.contract")

from tests.contract import TestContract, name, trained  # noqa: E402, F401
