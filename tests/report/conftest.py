"""Here the files of charts are tested."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _saved_charts(saved_charts):
    pass
