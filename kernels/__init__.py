"""Triton kernels, one module an op; installed as `stib_fast.kernels`."""
