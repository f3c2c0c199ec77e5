"""Lowering of tile IR to LLVM IR, one file per family of operations."""
