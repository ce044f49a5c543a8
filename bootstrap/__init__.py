"""bootstrap assembles: configuration, node, command line, demo. The only package that may know everything."""
