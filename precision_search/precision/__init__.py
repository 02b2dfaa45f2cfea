"""From plan to graph: low dtypes, plans and blocklists, the kernel table, emulation, conversion with its proof."""
