# Nothing of pypi is needed here.
