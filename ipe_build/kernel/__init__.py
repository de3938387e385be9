"""The kernel's trust, configuration, build, modules and facts."""
