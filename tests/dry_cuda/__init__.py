"""A dry CUDA runtime: ONNX Runtime's real CUDA provider on stand-in libraries that count and compute nothing.

Device memory is host memory, copies are real, kernels and matrix products are written down and not run. Values mean
nothing; what ONNX Runtime decides and asks for is real. `build` makes the libraries, `host.DryCuda` runs a function on
them in a child process, `recorder.Recorder` reads there what was asked, and `trace` is what comes back.
"""
