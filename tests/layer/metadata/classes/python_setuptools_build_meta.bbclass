# Nothing of python_setuptools_build_meta is needed here.
