"""Templates of plugin packages, one module a kind; ``cxrlt plugins new`` fills them in."""
