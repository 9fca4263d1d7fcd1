"""The GPU side of the ops: buffers and matrix products around the loops of Triton kernels, which C++ launches."""
