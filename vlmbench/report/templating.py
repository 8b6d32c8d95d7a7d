"""Templates of the package, for the page and for tables."""

from __future__ import annotations

from typing import Any

from vlmbench.errors import ConfigError


def environment() -> Any:
    """Templates of the package; texts are escaped where they become HTML.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("report.html and tables/ need jinja2: pip install 'vlmbench-latency[experiments]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vlmbench.report"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
    )
