"""Triton kernels and their launchers, one file an operator; installed as ``motarfuse.kernels``.

A kernel imports torch and triton and nothing else of this project.
"""
