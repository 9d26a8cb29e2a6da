"""The static report of every kernel: registers, shared memory, spills, instructions; compiled here, run nowhere.

``python -m tools.kernel_report`` compiles the Triton kernels (``static_cases`` in the modules of ``kernels/``) and the
``.cu`` files, checks what they demand, and compares them with the committed table.
"""
