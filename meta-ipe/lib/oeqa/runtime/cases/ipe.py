#
# SPDX-License-Identifier: MIT
#
"""A running device enforces: TEST_SUITES += "ipe" (testimage, or a real target with TEST_TARGET = "simpleremote").

Every denial has its twin, the same program from where it may run, and its audit record: a missing file or a noexec mount is no denial.
"""

from oeqa.runtime.case import OERuntimeTestCase

IPE = "/sys/kernel/security/ipe"


class IpeTest(OERuntimeTestCase):
    """What root can try on the device."""

    def run_on_target(self, command):
        """Returns (exit status, output) of a shell command."""
        return self.target.run(command)

    def expect(self, command):
        """Returns the output of a command that must work."""
        status, output = self.run_on_target(command)
        self.assertEqual(status, 0, "%s: %s" % (command, output))
        return output.strip()

    def setUp(self):
        super().setUp()
        self.run_on_target("[ -d %s ] || mount -t securityfs securityfs /sys/kernel/security" % IPE)

    def writable_folder(self):
        """Returns a folder of a mount without noexec, where a denial can only be IPE's."""
        for folder in ("/run", "/dev/shm", "/tmp", "/var/volatile"):
            script = "[ -d {0} ] && touch {0}/ipe-oeqa && ! grep -q ' {0} [^ ]* [^ ]*noexec' /proc/mounts".format(folder)
            if self.run_on_target(script)[0] == 0:
                return folder
        return self.skipTest("no writable mount without noexec")

    def test_ipe_enforces(self):
        self.assertEqual(self.expect("cat %s/enforce" % IPE), "1")

    def test_one_policy_is_active(self):
        active = self.expect("grep -l 1 %s/policies/*/active" % IPE).split()
        self.assertEqual(len(active), 1, active)
        self.assertIn("policy_name=", self.expect("cat %s" % active[0].replace("/active", "/policy")))

    def test_root_is_on_dm_verity_and_read_only(self):
        mounts = [line.split() for line in self.expect("cat /proc/self/mountinfo").splitlines()]
        device = [words[2] for words in mounts if words[4] == "/"][-1]
        target = self.expect("cat /sys/dev/block/%s/dm/uuid" % device)
        self.assertTrue(target.startswith("CRYPT-VERITY-"), target)
        self.assertNotEqual(self.run_on_target("touch /ipe-oeqa")[0], 0)

    def test_program_runs_from_the_root_and_its_copy_is_denied(self):
        # The copy has the program's own name: in a multi-call binary it decides what runs.
        program = self.expect("for file in /bin/cat /usr/bin/cat; do [ -x $file ] && readlink -f $file && break; done")
        copy = self.writable_folder() + "/cat"
        self.expect("cp {0} {1} && chmod 755 {1} && [ -x {1} ] && cp {1} /dev/null".format(program, copy))
        status, output = self.run_on_target(copy + " /dev/null")
        self.assertEqual(status, 126, output)
        self.assertIn("ermission denied", output)
        self.assertIn("enforcing=1", self.expect("dmesg | grep 'ipe_op=EXECUTE' | grep 'path=\"%s\"'" % copy))
        self.expect("/bin/cat /dev/null || /usr/bin/cat /dev/null")

    def test_enforcement_cannot_be_switched_off(self):
        self.run_on_target("echo 0 > %s/enforce" % IPE)
        self.assertEqual(self.expect("cat %s/enforce" % IPE), "1")

    def test_unsigned_policy_is_refused(self):
        before = self.expect("ls %s/policies" % IPE)
        lines = "policy_name=oeqa policy_version=9.9.9\\nDEFAULT action=ALLOW\\n"
        status, output = self.run_on_target("printf '%s' > %s/new_policy" % (lines, IPE))
        self.assertNotEqual(status, 0, output)
        self.assertEqual(self.expect("ls %s/policies" % IPE), before)

    def test_writing_to_the_verity_device_is_refused(self):
        status, output = self.run_on_target("dd if=/dev/zero of=/dev/dm-0 bs=512 count=1 conv=notrunc")
        self.assertNotEqual(status, 0, output)
