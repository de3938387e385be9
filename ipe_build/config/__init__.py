"""One TOML schema, loaded into frozen dataclasses; unknown keys are errors."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ipe_build.config.loader import load_section
from ipe_build.config.schema import Config
from ipe_build.errors import ConfigError

__all__ = ["Config", "load_config"]


def load_config(file: Path) -> Config:
    """Returns the configuration in a TOML file; relative paths in it count from its folder.

    Raises: ConfigError when it is unreadable, not TOML, or does not fit the schema.
    """
    try:
        table = tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file), hint="name the configuration with -c FILE") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", where=str(file), hint="TOML files are UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", where=str(file)) from error
    return load_section(Config, table, file=str(file), place="", base=file.absolute().parent)
