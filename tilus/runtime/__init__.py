"""Run time: specialise kernels, keep what was compiled, load it and launch it; and ahead of time."""
