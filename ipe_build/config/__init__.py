"""One TOML schema, loaded into frozen dataclasses; unknown keys are errors."""
