"""Files that are rendered: scripts and configurations of other programs. One way in, `render_file`."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

_QUOTE = "'"


def render_file(template: str, **values: object) -> str:
    """Returns the text of a template of this folder; an undefined variable is an error."""
    environment = Environment(
        loader=PackageLoader("ipe_build.image", "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 (no HTML: shell, INI, libconfig)
    )
    environment.filters["quoted"] = _shell_word
    return environment.get_template(template).render(values)


def _shell_word(text: object) -> str:
    """Returns a text as one word of a shell."""
    return _QUOTE + str(text).replace(_QUOTE, "'\\''") + _QUOTE
