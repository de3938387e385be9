# A recipe for the machine that builds. BitBake itself has named it NAME-native.
