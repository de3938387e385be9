#
# SPDX-License-Identifier: MIT
#
"""`oe-selftest -r ipe` in a build folder that makes IPE_SELFTEST_IMAGE (core-image-minimal) with meta-ipe and names keys."""

import os
import shutil
import tempfile

from oeqa.selftest.case import OESelftestTestCase
from oeqa.utils.commands import bitbake, get_bb_vars

NAMES = ["IPE_SELFTEST_IMAGE", "DEPLOY_DIR_IMAGE", "IMAGE_LINK_NAME", "IPE_ROOT_FILESYSTEM", "IPE_DISK_NAME", "IPE_BUILD_CMD", "STAMPS_DIR"]


class IpeSelfTest(OESelftestTestCase):
    """Builds with the configuration that is there, changed by one thing."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.image = get_bb_vars(["IPE_SELFTEST_IMAGE"])["IPE_SELFTEST_IMAGE"] or "core-image-minimal"
        cls.vars = get_bb_vars(NAMES, cls.image)

    def deployed(self, suffix):
        """Returns the path of IMAGE_LINK_NAME.IPE_ROOT_FILESYSTEM with a suffix."""
        name = "%s.%s%s" % (self.vars["IMAGE_LINK_NAME"], self.vars["IPE_ROOT_FILESYSTEM"], suffix)
        return os.path.join(self.vars["DEPLOY_DIR_IMAGE"], name)

    def tasks_run(self, extra=""):
        """Builds and returns `recipe:task` of what ran, not of what came from sstate or was done."""
        self.write_config(extra)
        output = bitbake(self.image).output
        lines = [line for line in output.splitlines() if "Running task" in line or "Running noexec task" in line]
        return {os.path.basename(line.rpartition("(")[2].rstrip(")")).replace(".bb", "") for line in lines if "noexec" not in line}

    def test_image_has_its_sidecars_and_a_disk(self):
        self.tasks_run()
        for suffix in ("", ".verity", ".roothash", ".roothash.p7s", ".verity-sig", ".verity.env"):
            self.assertExists(self.deployed(suffix))
        self.assertExists(os.path.join(self.vars["DEPLOY_DIR_IMAGE"], self.vars["IPE_DISK_NAME"]))

    def test_changed_policy_makes_no_root_and_no_kernel(self):
        self.tasks_run()
        ran = self.tasks_run('IPE_POLICY_VERSION:pn-ipe-policy = "9.0.0"')
        self.assertTrue(any(task.endswith("do_ipe_disk") for task in ran), ran)
        for name in ("do_rootfs", "do_image_complete", "do_ipe_sign", "do_kernel_configme", "do_shared_workdir"):
            self.assertFalse(any(task.endswith(name) for task in ran), ran)

    def test_missing_key_names_the_variable(self):
        self.write_config('IPE_VERITY_KEY = ""\nIPE_VERITY_SALT = "00"')
        result = bitbake(self.image, ignore_status=True)
        self.assertNotEqual(result.status, 0)
        self.assertIn("IPE_VERITY_KEY is not set", result.output)

    def test_flipped_byte_of_the_root_fails_the_audit(self):
        self.tasks_run()
        disk = os.path.join(self.vars["DEPLOY_DIR_IMAGE"], self.vars["IPE_DISK_NAME"])
        with tempfile.TemporaryDirectory() as folder:
            changed = shutil.copyfile(disk, os.path.join(folder, "changed.ipedisk"))
            with open(self.deployed(""), "rb") as file:
                root = file.read(4096)
            with open(changed, "r+b") as file:
                at = file.read().index(root)
                file.seek(at + 2048)
                byte = file.read(1)
                file.seek(at + 2048)
                file.write(bytes([byte[0] ^ 1]))
            self.write_config('IPE_AUDIT_IMAGE = "%s"' % changed)
            result = bitbake("%s -c ipe_audit -f" % self.image, ignore_status=True)
        self.assertNotEqual(result.status, 0)
        self.assertIn("IPE_AUDIT_IMAGE", result.output)
