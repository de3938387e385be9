"""Key stores: one file a backend, chosen by the scheme of the key URI."""
