"""The derivatives that are procedures of their own: of control flow, and of kernels that are loops over time. Every module here registers its
rules with ops/gradient.py when it is imported; `ops.registry.load` imports them all."""
