"""What only a real CUDA device can show: that its kernels compute what the search believes they do.

Each test is written once for the devices `cpu` and `cuda`. The second is marked `gpu`; the first runs everywhere and
shows that the test itself works. On a CPU low graphs run widened, as the product runs them there. What is CUDA's own
(graphs in low precision as they are) runs in `tests/dry_cuda/test_gpu_bodies.py` on stand-in libraries, for its form.
"""
