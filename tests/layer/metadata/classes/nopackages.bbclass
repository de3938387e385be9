# Nothing of nopackages is needed here.
