# A recipe for the SDK: another name, nothing more here.
PN:prepend = "nativesdk-"
