# A recipe for the machine that builds: another name, nothing more here.
PN:append = "-native"
