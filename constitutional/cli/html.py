"""Pages of commands: one HTML text that needs nothing else, from a template beside the commands."""

from pathlib import Path


def rendered(template: str, **values: object) -> str:
    """The template `<name>.j2` with these values; what stands in them is escaped, and the report's style is `style`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from constitutional.stages.report.page import ASSETS, CONTROL

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            value.translate(CONTROL) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    style = Markup((ASSETS / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template(f"{template}.j2").render(style=style, **values)
