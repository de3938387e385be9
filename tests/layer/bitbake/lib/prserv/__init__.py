"""No PR service: nothing here packages."""
