"""The project's Triton kernels, and the tables by which they find a model's tensors."""
