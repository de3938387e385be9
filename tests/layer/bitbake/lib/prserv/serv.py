"""What the cooker asks of a PR service that is off."""


class PRServiceConfigError(Exception):
    """Never raised."""


def auto_start(_data: object) -> None:
    return None


def auto_shutdown() -> None:
    return None
