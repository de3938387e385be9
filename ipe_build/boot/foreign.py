"""A key that no device trusts, made on the spot: what it signs must be refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.signing.certificates import Role, create_keys
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROLE = Role("foreign", "foreign signing")


def make_foreign_signer(folder: Path, host: Host) -> Signer:
    """Returns the signer of a new TEST key (RSA-3072) whose private part is in `folder/foreign` (a folder that is not there yet).

    Raises: OutputError when the folder exists.
    """
    start = datetime.fromtimestamp(host.source_date_epoch, UTC)
    keys = create_keys(folder / "foreign", host, not_before=start, organisation="ipe-build foreign", roles=(_ROLE,))
    return keys.pair(_ROLE.name).signer(host)
