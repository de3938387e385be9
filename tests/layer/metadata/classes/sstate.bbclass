# The contract of OE-core's sstate.bbclass: what a task of SSTATETASKS put into its [sstate-inputdirs] is copied to [sstate-outputdirs] and
# packed under the task's unihash; NAME_setscene unpacks it instead; the output's hash is reported for equivalence. [sstate-plaindirs] are
# packed and unpacked where they are. SSTATE_MANFILEPREFIX.TASK lists what a task put there.
SSTATE_MANFILEPREFIX = "${TMPDIR}/sstate-control/${MACHINE}-${PN}"
SSTATE_DIR ?= "${TOPDIR}/sstate-cache"
SSTATE_MIRROR ?= ""
BB_HASHCHECK_FUNCTION = "small_sstate_found"
BB_SETSCENE_DEPVALID = "small_setscene_not_needed"
BB_HASHFILENAME = "${PN}"

def small_sstate_name(d):
    return "%s-%s-%s.tar" % (d.getVar("PN"), d.getVar("BB_CURRENTTASK").replace("_setscene", ""), d.getVar("BB_UNIHASH"))

def small_sstate_folders(d):
    return [d.getVar("SSTATE_DIR")] + (d.getVar("SSTATE_MIRROR") or "").split()

def small_sstate_found(sq_data, d, siginfo=False, currentcount=0, summary=True, **others):
    found = set()
    for task in sq_data["hash"]:
        name = "%s-%s-%s.tar" % (sq_data["hashfn"][task], bb.runqueue.taskname_from_tid(task)[3:], sq_data["unihash"][task])
        if any(os.path.exists(os.path.join(folder, name)) for folder in small_sstate_folders(d)):
            found.add(task)
    return found

def small_setscene_not_needed(task, dependees, not_needed, d, log=None):
    # As OE-core falls through: whoever depends on it may need it.
    return all(dependee == task or dependee in not_needed for dependee in dependees)

def small_sstate_packed(d, task):
    return [folder for flag in ("sstate-inputdirs", "sstate-plaindirs") for folder in (d.getVarFlag(task, flag) or "").split()]

def small_sstate_clean(d, task):
    # What this task put there last time, for the same machine.
    listed = d.expand("${SSTATE_MANFILEPREFIX}.%s" % task.replace("do_", "", 1))
    for path in open(listed).read().split() if os.path.exists(listed) else ():
        bb.utils.remove(path)

def small_sstate_copy(d, task):
    import shutil
    inputs = (d.getVarFlag(task, "sstate-inputdirs") or "").split()
    outputs = (d.getVarFlag(task, "sstate-outputdirs") or "").split()
    if len(inputs) != len(outputs):
        bb.fatal("%s: sstate-inputdirs and sstate-outputdirs differ in number" % task)
    small_sstate_clean(d, task)
    paths = []
    for source, target in zip(inputs, outputs):
        bb.utils.mkdirhier(target)
        for folder, folders, names in os.walk(source):
            for name in sorted(names):
                path = os.path.join(target, os.path.relpath(folder, source), name)
                # As OE-core: a file that another task put there is an error.
                if os.path.lexists(path):
                    bb.fatal("%s would replace %s, which another task made" % (task, path))
                bb.utils.mkdirhier(os.path.dirname(path))
                shutil.copy2(os.path.join(folder, name), path, follow_symlinks=False)
                paths.append(path)
    bb.utils.mkdirhier(d.getVar("TMPDIR") + "/sstate-control")
    open(d.expand("${SSTATE_MANFILEPREFIX}.%s" % task.replace("do_", "", 1)), "w").write("\n".join(paths))

python sstate_task_prefunc () {
    small_sstate_clean(d, "do_" + d.getVar("BB_CURRENTTASK"))
}

python sstate_task_postfunc () {
    import tarfile
    task = "do_" + d.getVar("BB_CURRENTTASK")
    small_sstate_copy(d, task)
    if d.getVar("SSTATE_SKIP_CREATION") == "1":
        return
    bb.utils.mkdirhier(d.getVar("SSTATE_DIR"))
    folders = small_sstate_packed(d, task)
    # Tasks of one recipe run at the same time: each packs a file of its own.
    content = d.getVar("T") + "/sstate-%s.tar" % task
    with tarfile.open(content, "w", dereference=False) as archive:
        for number, folder in enumerate(folders):
            archive.add(folder, arcname=str(number))
    if hasattr(bb.parse.siggen, "report_unihash"):
        bb.parse.siggen.report_unihash(folders[0] if folders else d.getVar("T"), d.getVar("BB_CURRENTTASK"), d)
    os.replace(content, os.path.join(d.getVar("SSTATE_DIR"), small_sstate_name(d)))
}

def sstate_setscene(d):
    import tarfile
    task = "do_" + d.getVar("BB_CURRENTTASK").replace("_setscene", "")
    for folder in small_sstate_folders(d):
        path = os.path.join(folder, small_sstate_name(d))
        if os.path.exists(path):
            break
    else:
        bb.fatal("no sstate for %s" % task)
    for number, folder in enumerate(small_sstate_packed(d, task)):
        bb.utils.remove(folder, True)
        bb.utils.mkdirhier(folder)
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.startswith("%d/" % number):
                    member.name = member.name.partition("/")[2]
                    archive.extract(member, folder, filter="tar")
    small_sstate_copy(d, task)

def sstate_output_hash(path, sigfile, task, d):
    import hashlib
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            digest.update(os.path.relpath(file, path).encode() + b"\0")
            digest.update(os.readlink(file).encode() if os.path.islink(file) else open(file, "rb").read())
    sigfile.write(digest.hexdigest().encode())
    return digest.hexdigest()

python () {
    for task in sorted(set((d.getVar("SSTATETASKS") or "").split())):
        d.prependVarFlag(task, "prefuncs", "sstate_task_prefunc ")
        d.appendVarFlag(task, "postfuncs", " sstate_task_postfunc")
}
