"""The two base classes of OE-core's oeqa that our cases build on, as far as they do."""
