"""The run directory: its files, the log of judged plans, the Pareto table, and how numbers are worded."""
