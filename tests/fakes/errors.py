"""What a refusal says."""

from collections.abc import Callable
from typing import Any

import pytest

from robolearn.errors import UserError


def message(call: Callable[[], Any]) -> str:
    """The one sentence of the `UserError` that a call raises."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text
