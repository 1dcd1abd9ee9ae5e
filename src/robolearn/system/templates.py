"""HTML from Jinja templates that lie beside the modules which fill them."""

from importlib import resources
from typing import Any

from robolearn.errors import printable
from robolearn.system.json_files import to_json


def render(package: str, name: str, **values: Any) -> str:
    """Fill a template; values are text without control characters and escaped, except those that are marked as HTML.

    Args:
        package: The package that the template's file is in.
        name: The file.
        values: What the template names.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
    )
    environment.policies["json.dumps_function"] = to_json
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.from_string((resources.files(package) / name).read_text()).render(values)
