"""What is decided about a graph: plans, the kernel table, emulation, ranges, conversion with its proof, costs."""
