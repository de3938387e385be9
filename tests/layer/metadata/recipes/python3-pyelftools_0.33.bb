SUMMARY = "The contract: OE-core has it for the target and native, meta-ipe's bbappend adds nativesdk"
LICENSE = "MIT"
BBCLASSEXTEND = "native"
