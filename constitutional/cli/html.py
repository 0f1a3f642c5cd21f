"""Pages of commands: one HTML text that needs nothing else, from a template beside the commands."""

from pathlib import Path


def rendered(template: str, **values: object) -> str:
    """The template `<name>.j2` with these values; all is escaped, styled and called as in the report."""
    from jinja2 import FileSystemLoader

    from constitutional.stages.report.page import environment

    own = environment().overlay(loader=FileSystemLoader(Path(__file__).parent))
    return own.get_template(f"{template}.j2").render(**values)
