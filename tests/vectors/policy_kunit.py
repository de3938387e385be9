"""What the kernel's KUnit suite for the policy parser tests, restated: (text, errno or None, what it shows).

Source: Linux 6.12 security/ipe/policy_tests.c, ipe_parser_unsigned_test() and ipe_parser_widestring_test().
"""

from __future__ import annotations

_HEADER = b"policy_name=t policy_version=0.0.0\n"
_ALLOW = b"DEFAULT action=ALLOW\n"
_SIGNED = b"op=EXECUTE dmverity_signature=TRUE action=ALLOW"
_OLD_DIGEST = b"a5" * 20

KUNIT_CASES: tuple[tuple[bytes, str | None, str], ...] = (
    (b"policy_name=everything policy_version=0.0.0\nDEFAULT action=ALLOW", None, "basic"),
    (b"policy_name=n policy_version=152.0.0 #remark\nDEFAULT action=ALLOW", None, "trailing comment"),
    (b"policy_name=n policy_version=0.2.0\n" + _ALLOW + b"\n", None, "trailing newline"),
    (b"policy_name=n policy_version=0.0.1\n" + _ALLOW + b"\r\n", None, "CRLF newline"),
    (
        _HEADER + b"DEFAULT\taction=ALLOW\n   \t  DEFAULT \t   op=EXECUTE     action=DENY\nop=EXECUTE boot_verified=TRUE action=ALLOW\n"
        b"# a\tremark\t\t\t\nDEFAULT \t op=KMODULE\t\t\t action=DENY\r\nop=KMODULE boot_verified=TRUE action=ALLOW\n",
        None,
        "various whitespaces and nested default",
    ),
    (b"policy_name=n policy_version=-1236.0.0\nDEFAULT\taction=ALLOW\n", "EINVAL", "negative version"),
    (b"policy_name=$@!*&^%%\\:;{}() policy_version=0.0.0\nDEFAULT action=ALLOW", None, "special characters"),
    (b"policy_name=n policy_version=999999.0.0\nDEFAULT action=ALLOW", "ERANGE", "overflow version"),
    (b"policy_name=n policy_version=255.0\nDEFAULT action=ALLOW", "EBADMSG", "incomplete version"),
    (b"policy_name=n policy_version=111.0.0.0\nDEFAULT action=ALLOW", "EBADMSG", "extra version"),
    (b"", "EBADMSG", "empty policy"),
    (b"policy_name=n\0policy_version=0.0.0\nDEFAULT action=ALLOW", "EBADMSG", "NUL in the header"),
    (_HEADER + b"\0DEFAULT action=ALLOW", "EBADMSG", "policy made incomplete by a NUL"),
    (_HEADER + b"DEFAULT action=DENY\n\0" + _SIGNED + b"\n", None, "NUL truncates the policy"),
    (_HEADER + _ALLOW + b"op=EXECUTE dmverity_signature=abc action=ALLOW", "EBADMSG", "invalid property value"),
    (b"DEFAULT action=ALLOW", "EBADMSG", "missing header"),
    (_HEADER, "EBADMSG", "missing default"),
    (_HEADER + _ALLOW + b"dmverity_signature=TRUE op=EXECUTE action=ALLOW", "EBADMSG", "property before op"),
    (_HEADER + _ALLOW + b"action=ALLOW op=EXECUTE dmverity_signature=TRUE", "EBADMSG", "action before op"),
    (b"policy_name=n policy_version=0.0\n" + _ALLOW + _SIGNED, "EBADMSG", "invalid version"),
    (_HEADER + _ALLOW + b"op=UNKNOWN dmverity_signature=TRUE action=ALLOW", "EBADMSG", "unknown operation"),
    (b"policy_name=npolicy_version=0.0.0\n" + _ALLOW, "EBADMSG", "missing space after the name"),
    (b"policy_name=n\xff\xef policy_version=0.0.0\n" + _ALLOW + _SIGNED, None, "bytes above ASCII"),
    (_HEADER + _ALLOW + b"op=EXECUTE dmverity_roothash=NOT_A_HASH action=ALLOW", "EBADMSG", "digest without algorithm"),
    (_HEADER + _HEADER + _ALLOW, "EBADMSG", "double header"),
    (_HEADER + _ALLOW + _ALLOW, "EBADMSG", "double default"),
    (_HEADER + _ALLOW + b"DEFAULT op=EXECUTE action=DENY\nDEFAULT op=EXECUTE action=ALLOW\n", "EBADMSG", "double operation default"),
    (_HEADER + _ALLOW + b"DEFAULT op=EXECUTE action=DEN\n", "EBADMSG", "invalid action value"),
    (_HEADER + _ALLOW + b"DEFAULT op=EXECUTE action\n", "EBADMSG", "action without value"),
    (_HEADER + _ALLOW + b"UNKNOWN value=true\n", "EBADMSG", "unrecognized statement"),
    (_HEADER + _ALLOW + b"op=EXECUTE dmverity_roothash=" + _OLD_DIGEST + b" action=DENY\n", "EBADMSG", "old-style root hash"),
    (_HEADER + _ALLOW + b"op=EXECUTE fsverity_digest=" + _OLD_DIGEST + b" action=DENY\n", "EBADMSG", "old-style fs-verity digest"),
    ("policy_name=Test policy_version=0.0.0\nDEFAULT action=ALLOW".encode("utf-16-le"), "EBADMSG", "wide characters"),
)
