"""What a refusal says, and what it is about."""

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


def refused(key: str | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> UserError:
    """The error of a call that must refuse a key or a file, whatever its wording.

    Args:
        key: The dotted key or the file that the error must be about.
        function: What to call.
        args: For the function.
        kwargs: For the function.
    """
    with pytest.raises(UserError) as raised:
        function(*args, **kwargs)
    assert raised.value.key == key, f"about {raised.value.key}: {raised.value}"
    return raised.value
