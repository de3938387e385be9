# A recipe for the SDK: BitBake has named it NAME-nativesdk, OE-core names it nativesdk-NAME.
PN := "nativesdk-${@d.getVar('PN').removesuffix('-nativesdk')}"
