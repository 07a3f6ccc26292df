"""cxrlt: long-tailed, multi-label chest X-ray classification whose numbers can be believed."""

__version__ = "0.1.0"
