"""What an event of a log says it was, for people. Nobody vouches for that text: only the digest counts."""

from __future__ import annotations

from ipe_build.formats.tpm_event_log import Event, EventType, type_name

_TEXT = {EventType.EV_EFI_ACTION, EventType.EV_IPL, EventType.EV_POST_CODE, EventType.EV_ACTION}
_VARIABLES = {
    EventType.EV_EFI_VARIABLE_DRIVER_CONFIG,
    EventType.EV_EFI_VARIABLE_BOOT,
    EventType.EV_EFI_VARIABLE_BOOT2,
    EventType.EV_EFI_VARIABLE_AUTHORITY,
}
_PROGRAMS = {
    EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
    EventType.EV_EFI_BOOT_SERVICES_DRIVER,
    EventType.EV_EFI_RUNTIME_SERVICES_DRIVER,
}
_MOST = 160
_FILE_PATH_NODE = (4, 4)


def describe(event: Event) -> str:
    """Returns one printable line: the event's number, type and what its data says."""
    said = _said(event)
    return f"event {event.number} ({type_name(event.type)}{f': {said}' if said else ''})"


def _said(event: Event) -> str:
    if event.type in _TEXT:
        return _text(event.data)
    if event.type in _VARIABLES and len(event.data) >= 32:
        return _text(event.data[32 : 32 + 2 * int.from_bytes(event.data[16:24], "little")])
    if event.type in _PROGRAMS and len(event.data) >= 32:
        return _file_path(event.data[32:])
    if event.type == EventType.EV_EVENT_TAG:
        return _text(event.data[8:])
    return ""


def _text(data: bytes) -> str:
    """Returns text in UTF-16 (when every other byte is zero) or UTF-8, printable and cut short."""
    wide = len(data) >= 2 and len(data) % 2 == 0 and not any(data[1::2])
    text = data.decode("utf-16-le" if wide else "utf-8", "replace").rstrip("\0")
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}…"


def _file_path(path: bytes) -> str:
    """Returns the file's path in a device path, empty when it has none."""
    at = 0
    while at + 4 <= len(path):
        length = int.from_bytes(path[at + 2 : at + 4], "little")
        if length < 4 or at + length > len(path):
            break
        if (path[at], path[at + 1]) == _FILE_PATH_NODE:
            return _text(path[at + 4 : at + length])
        at += length
    return ""
