"""HTML from Jinja templates that lie beside the modules which fill them."""

from importlib import resources
from typing import Any


def render(package: str, name: str, **values: Any) -> str:
    """Fill a template; values are escaped, except those that are marked as HTML.

    Args:
        package: The package that the template's file is in.
        name: The file.
        values: What the template names.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.from_string((resources.files(package) / name).read_text()).render(values)
