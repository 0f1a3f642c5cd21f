"""Pages of commands: one HTML text that needs nothing else, from a template beside the commands."""

from pathlib import Path

from constitutional.base.errors import UsageError


def rendered(template: str, **values: object) -> str:
    """The template `<name>.j2` with these values; all is escaped, styled and called as in the report."""
    from jinja2 import FileSystemLoader

    from constitutional.stages.report.page import environment

    own = environment().overlay(loader=FileSystemLoader(Path(__file__).parent))
    return own.get_template(f"{template}.j2").render(**values)


def check_page(option: str, path: Path | None) -> None:
    """Refuse a page that cannot be written, before any work is done.

    Raises:
        UsageError: the path is a folder, or its folder is not there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; type {option} {path / 'page.html'}")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it, or type another")
