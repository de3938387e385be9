"""The steps of a build up to the disk image: one typed function each, from the values of earlier ones to a value.

The order is `pipeline.build`'s; a step's files lie where it is told.
"""
