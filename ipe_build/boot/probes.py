"""THE table of probes: one row each, with what is tried, what must come of it, which layer decides and which record the kernel writes.

The probe program in the guest knows kinds (`run`, `mmap`, `finit-module` ...), not probes: a new probe is a row here.
Sources of the expected errors: security/ipe/eval.c (EACCES), kernel/module/signing.c (module_sig_check: EKEYREJECTED and its message),
security/ipe/policy.c (ipe_update_policy: ESTALE; ipe_set_active_pol: EINVAL), certs/system_keyring.c (ENOKEY), crypto/asymmetric_keys
(EBADMSG), glibc's loader (exit status 127). Each was seen on a booted Linux 6.12.
"""

from __future__ import annotations

from ipe_build.boot import layout
from ipe_build.boot.expectation import Expected, Layer, Need, Outcome, Probe, WantedRecord


def _run(action: str, *, path: str | None = None, dev: str | None = None) -> WantedRecord:
    return WantedRecord("EXECUTE", "BPRM_CHECK", action, path=path, dev=dev)


def _map(action: str, *, path: str | None = None, dev: str | None = None) -> WantedRecord:
    return WantedRecord("EXECUTE", "MMAP", action, path=path, dev=dev)


def _protect(action: str, *, path: str | None = None, dev: str | None = None) -> WantedRecord:
    return WantedRecord("EXECUTE", "MPROTECT", action, path=path, dev=dev)


def _module(action: str, hook: str = "KERNEL_READ", *, path: str | None = None, dev: str | None = None) -> WantedRecord:
    return WantedRecord("KMODULE", hook, action, path=path, dev=dev)


def _allowed(why: str, *records: WantedRecord, layer: Layer = Layer.IPE, detail: str = "", status: int | None = None) -> Expected:
    return Expected(Outcome.ALLOWED, layer, why, status=status, detail=detail, records=records)


def _denied(error: str, why: str, *records: WantedRecord, layer: Layer = Layer.IPE, message: str = "", detail: str = "") -> Expected:
    return Expected(Outcome.DENIED, layer, why, (error,), message=message, detail=detail, records=records)


def _loader_denied(status: int, why: str, record: WantedRecord) -> Expected:
    return Expected(Outcome.DENIED, Layer.IPE, why, status=status, detail="failed to map segment from shared object", records=(record,))


_ROOT = "lies on the verity root, whose root hash {voucher}"
_TMPFS = "lies on tmpfs, for which no rule of the policy holds"
_SIGNER = "no trusted key made its signature"
_NEWER = "an update must have a higher version than the policy it replaces"

PROBES: tuple[Probe, ...] = (
    Probe(
        "run-program",
        "a program of the verity root",
        ("run", layout.PROBE, "hello"),
        _allowed(f"it {_ROOT}", _run("ALLOW", path=layout.PROBE), status=0, detail="hello"),
    ),
    Probe(
        "run-dynamic",
        "a dynamically linked program of the verity root, with its loader and libraries",
        ("run", layout.APPLICATION),
        _allowed(
            f"every file of it {_ROOT}",
            _run("ALLOW", path=layout.APPLICATION),
            _map("ALLOW", path=layout.LIBRARY),
            status=0,
            detail="the library is mapped",
        ),
    ),
    Probe(
        "run-application",
        "the image's own application",
        ("run", "{application}"),
        _allowed(f"it {_ROOT}", _run("ALLOW"), status=0),
        needs=(Need.APPLICATION,),
    ),
    Probe(
        "map-library",
        "mmap(PROT_EXEC) of a library of the verity root",
        ("mmap", layout.LIBRARY),
        _allowed(f"it {_ROOT}", _map("ALLOW", path=layout.LIBRARY)),
    ),
    Probe(
        "protect-library",
        "mprotect(PROT_EXEC) of a mapped library of the verity root",
        ("mprotect", layout.LIBRARY),
        _allowed(f"it {_ROOT}", _protect("ALLOW", path=layout.LIBRARY)),
        # Source: security/integrity/ima/ima_main.c (ima_file_mprotect): what was not appraised when it was mapped is not made executable.
        appraised=_denied(
            "EPERM",
            "IMA did not appraise it when it was mapped, and does not do so later, signed or not",
            _protect("ALLOW", path=layout.LIBRARY),
            layer=Layer.IMA,
            message="cause=failed-mprotect",
        ),
    ),
    Probe(
        "run-copy",
        "a copy of a program on tmpfs",
        ("run", f"@tmpfs:{layout.PROBE}", "hello"),
        _denied("EACCES", f"the copy {_TMPFS}", _run("DENY", dev="tmpfs")),
    ),
    Probe(
        "run-memfd",
        "a copy of a program in memory (memfd_create, execveat)",
        ("memfd-run", layout.PROBE, "hello"),
        _denied("EACCES", "memory has no file that a rule could hold for", _run("DENY", dev="tmpfs")),
    ),
    Probe(
        "run-script",
        "a script on tmpfs, run by its #! line",
        ("run", "@disk:script"),
        _denied("EACCES", f"the script {_TMPFS}", _run("DENY", dev="tmpfs")),
    ),
    Probe(
        "loader-runs-copy",
        "a copy of a program on tmpfs, given to the dynamic loader of the verity root",
        ("run", layout.LOADER, "--library-path", layout.FIXTURES, f"@tmpfs:{layout.APPLICATION}"),
        _loader_denied(127, f"the loader may run, what it maps {_TMPFS}", _map("DENY", dev="tmpfs")),
    ),
    Probe(
        "loader-maps-library",
        "a program of the verity root whose library is found on tmpfs (LD_LIBRARY_PATH)",
        ("run", f"env:LD_LIBRARY_PATH=@tmpfs-folder:{layout.LIBRARY}", layout.APPLICATION),
        _loader_denied(127, f"the library {_TMPFS}", _map("DENY", dev="tmpfs")),
    ),
    Probe(
        "dlopen-library",
        "dlopen of a library on tmpfs by a program of the verity root",
        ("run", layout.APPLICATION, "dlopen", f"@tmpfs:{layout.LIBRARY}"),
        _loader_denied(3, f"the library {_TMPFS}", _map("DENY", dev="tmpfs")),
    ),
    Probe(
        "map-copy",
        "mmap(PROT_EXEC) of a library on tmpfs",
        ("mmap", f"@tmpfs:{layout.LIBRARY}"),
        _denied("EACCES", f"the library {_TMPFS}", _map("DENY", dev="tmpfs"), detail="mmap refused"),
    ),
    Probe(
        "protect-copy",
        "mprotect(PROT_EXEC) of a mapped library on tmpfs",
        ("mprotect", f"@tmpfs:{layout.LIBRARY}"),
        _denied("EACCES", f"the library {_TMPFS}", _protect("DENY", dev="tmpfs"), detail="mprotect refused"),
    ),
    Probe(
        "map-anonymous",
        "mmap(PROT_EXEC) of anonymous memory",
        ("mmap-anonymous",),
        _denied("EACCES", "memory without a file falls to the policy's default", _map("DENY"), detail="mmap refused"),
    ),
    Probe(
        "protect-anonymous",
        "mprotect(PROT_EXEC) of anonymous memory",
        ("mprotect-anonymous",),
        _denied("EACCES", "memory without a file falls to the policy's default", _protect("DENY"), detail="mprotect refused"),
    ),
    Probe(
        "module-unsigned",
        "an unsigned module of the verity root",
        ("finit-module", layout.UNSIGNED_MODULE),
        _denied(
            "EKEYREJECTED",
            f"IPE allows it, since it {_ROOT}; the kernel wants a signature of the module's own",
            _module("ALLOW", path=layout.UNSIGNED_MODULE),
            layer=Layer.MODULE_SIGNATURE,
            message="Loading of unsigned module is rejected",
        ),
        needs=(Need.MODULES,),
        capability="CAP_SYS_MODULE",
        keyless=_allowed(
            f"it {_ROOT}; no key exists that a module could be signed with",
            _module("ALLOW", path=layout.UNSIGNED_MODULE),
            detail="module .* is loaded$",
        ),
    ),
    Probe(
        "module-foreign",
        "a module of the verity root, signed by a foreign key",
        ("finit-module", layout.FOREIGN_MODULE),
        _denied(
            "EKEYREJECTED",
            f"IPE allows it, since it {_ROOT}; {_SIGNER}",
            _module("ALLOW", path=layout.FOREIGN_MODULE),
            layer=Layer.MODULE_SIGNATURE,
            message="Loading of module with unavailable key is rejected",
        ),
        needs=(Need.MODULES,),
        capability="CAP_SYS_MODULE",
        keyless=_allowed(
            f"it {_ROOT}; a signature by whomever counts for nothing",
            _module("ALLOW", path=layout.FOREIGN_MODULE),
            detail="module .* is loaded$",
        ),
    ),
    Probe(
        "module-copy",
        "a copy of the image's module on tmpfs",
        ("finit-module", "@tmpfs:{module}"),
        _denied("EACCES", f"the module is good where it was, but the copy {_TMPFS}", _module("DENY", dev="tmpfs")),
        needs=(Need.MODULES,),
        capability="CAP_SYS_MODULE",
    ),
    Probe(
        "module-buffer",
        "the image's module from a buffer (init_module)",
        ("init-module", "{module}"),
        _denied("EACCES", "a buffer has no file that a rule could hold for", _module("DENY", "KERNEL_LOAD")),
        needs=(Need.MODULES,),
        capability="CAP_SYS_MODULE",
    ),
    Probe(
        "module-signed",
        "the signed module of the verity root",
        ("finit-module", layout.SIGNED_MODULE),
        _allowed(
            f"it {_ROOT}, and its own signature is by a trusted key",
            _module("ALLOW", path=layout.SIGNED_MODULE),
            detail="module .* is loaded$",
        ),
        needs=(Need.MODULES, Need.SIGNED_MODULE),
        capability="CAP_SYS_MODULE",
    ),
    Probe(
        "initramfs-program",
        "a copy of a program, written into the emptied initramfs below the root and run there",
        ("initramfs-run", layout.PROBE, "hello"),
        _denied("EACCES", "the policy in force allows nothing of the initramfs", _run("DENY")),
        needs=(Need.FINAL_POLICY,),
        capability="CAP_SYS_ADMIN",
    ),
    Probe(
        "initramfs-frozen",
        "the same, under a boot policy that allows programs of the initramfs",
        ("initramfs-run", layout.PROBE, "hello"),
        _denied(
            "EPERM",
            "ipe-init froze it, and no process has CAP_LINUX_IMMUTABLE",
            layer=Layer.CAPABILITY,
            detail="nothing can be written there",
        ),
        needs=(Need.FROZEN_INITRAMFS,),
        capability="CAP_SYS_ADMIN",
    ),
    Probe(
        "policy-any-key",
        "a policy, signed by somebody, for a kernel without keys",
        ("policy-new", "{other}", "@disk:policy-foreign-other"),
        _denied("ENOKEY", "no keyring holds a key, so that no signature is good", layer=Layer.POLICY_SIGNATURE, detail="version=none"),
        needs=(Need.FOREIGN_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-unsigned",
        "an unsigned newer policy",
        ("policy-update", "{policy}", "@disk:policy-unsigned"),
        _denied("EBADMSG", "only signed policies are read", layer=Layer.POLICY_SIGNATURE),
        needs=(Need.NEWER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-foreign",
        "a newer policy, signed by a foreign key",
        ("policy-update", "{policy}", "@disk:policy-foreign"),
        _denied("ENOKEY", _SIGNER, layer=Layer.POLICY_SIGNATURE),
        needs=(Need.NEWER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-tampered",
        "the signed newer policy with one bit of its text flipped",
        ("policy-update", "{policy}", "@disk:policy-tampered"),
        _denied("EKEYREJECTED", "its signature is by a trusted key, over another text", layer=Layer.POLICY_SIGNATURE),
        needs=(Need.NEWER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-older",
        "a signed policy with a lower version",
        ("policy-update", "{policy}", "@disk:policy-older"),
        _denied("ESTALE", _NEWER, layer=Layer.POLICY_VERSION, detail="version={version} active=1"),
        needs=(Need.OLDER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-same",
        "a signed policy with the same version",
        ("policy-update", "{policy}", "@disk:policy-same"),
        _denied("ESTALE", _NEWER, layer=Layer.POLICY_VERSION, detail="version={version} active=1"),
        needs=(Need.POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-newer",
        "a signed policy with a higher version: loaded, and in force at once",
        ("policy-update", "{policy}", "@disk:policy-newer"),
        _allowed(
            "a trusted key signed it, and its version is higher",
            WantedRecord(loads="{newer}"),
            WantedRecord(activates="{newer}"),
            layer=Layer.POLICY_SIGNATURE,
            detail="version={newer} active=1",
        ),
        needs=(Need.NEWER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-rollback",
        "the policy that the device shipped with, after the newer one",
        ("policy-update", "{policy}", "@disk:policy-same"),
        _denied("ESTALE", _NEWER, layer=Layer.POLICY_VERSION, detail="version={newer} active=1"),
        needs=(Need.NEWER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-other-name",
        "a signed policy of another name with a lower version: loaded only",
        ("policy-new", "{other}", "@disk:policy-other"),
        _allowed(
            "loading puts nothing in force", WantedRecord(loads="{older}"), layer=Layer.POLICY_SIGNATURE, detail="version={older} active=0"
        ),
        needs=(Need.OLDER_POLICY,),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "policy-other-activate",
        "activating that policy",
        ("policy-activate", "{other}"),
        _denied("EINVAL", "a version lower than that in force is not put in force", layer=Layer.POLICY_VERSION, detail="active=0"),
        needs=(Need.OLDER_POLICY, Need.OTHER_POLICY),
        capability="CAP_MAC_ADMIN",
    ),
    Probe(
        "run-copy-again",
        "a copy of a program on tmpfs, after all these policies",
        ("run", f"@tmpfs:{layout.PROBE}", "hello"),
        _denied("EACCES", f"the copy {_TMPFS}", _run("DENY", dev="tmpfs")),
        needs=(Need.NEWER_POLICY,),
    ),
    Probe(
        "script-by-interpreter",
        "a script on tmpfs, given to an interpreter of the verity root",
        ("run", "{interpreter}", "@disk:script-text"),
        Expected(
            Outcome.NOT_COVERED,
            Layer.NOBODY,
            "the kernel sees the interpreter, which may run (Linux 6.19 judges scripts if the interpreter asks it); leave interpreters out",
            status=0,
            detail="the script ran",
            records=(_run("ALLOW"),),
        ),
        needs=(Need.INTERPRETER,),
    ),
    Probe(
        "overwrite-text",
        "a process's own mapped code, overwritten through /proc/self/mem",
        ("overwrite-text",),
        Expected(
            Outcome.NOT_COVERED,
            Layer.HARDENING,
            "IPE judges code when it is mapped; EIO where the kernel is built with PROC_MEM_NO_FORCE",
            ("EIO", ""),
        ),
    ),
    Probe(
        "enforce-off",
        "root switches enforcement off (ipe/enforce)",
        ("write", "/sys/kernel/security/ipe/enforce", "0"),
        Expected(
            Outcome.NOT_COVERED,
            Layer.NOBODY,
            "whoever has CAP_MAC_ADMIN may; drop_capabilities takes it from every process of the device",
            detail="^0$",
            records=(WantedRecord(enforcing=False),),
        ),
        capability="CAP_MAC_ADMIN",
    ),
)
