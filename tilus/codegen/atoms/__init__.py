"""Instruction tables: an atom says which elements each thread holds, and what the instruction is called."""
