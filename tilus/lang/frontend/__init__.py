"""From the syntax tree of a kernel to tile IR."""
