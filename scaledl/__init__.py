"""ScaleDL: one command trains any of the main deep-learning architecture families, from a laptop to a cluster."""

__version__ = "0.1.0"
