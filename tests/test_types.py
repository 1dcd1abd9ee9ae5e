"""What a key holds."""

import pytest

from robolearn.types import Feature, Kind, kind_of


@pytest.mark.parametrize(
    ("key", "is_image", "kind"),
    [
        ("observation.image", None, "VISUAL"),
        ("observation.images.top", None, "VISUAL"),
        ("observation.state", None, "STATE"),
        ("observation.depth", None, "STATE"),
        ("observation.depth", True, "VISUAL"),
        ("observation.image_features", False, "STATE"),
        ("observation.environment_state", None, "ENV"),
        ("observation.environment_state", False, "ENV"),
        ("action", None, "ACTION"),
    ],
)
def test_kind_of_a_key(key: str, is_image: bool | None, kind: Kind) -> None:
    assert kind_of(key, is_image) == kind
    assert Feature(kind, (3, 8, 8)).is_image == (kind == "VISUAL")
