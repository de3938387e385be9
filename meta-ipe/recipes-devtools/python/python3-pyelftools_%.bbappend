require ${@bb.utils.contains('DISTRO_FEATURES', 'ipe', 'pyelftools-nativesdk.inc', '', d)}
