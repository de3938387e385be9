require ${@bb.utils.contains('DISTRO_FEATURES', 'ipe', 'linux-ipe.inc', '', d)}
