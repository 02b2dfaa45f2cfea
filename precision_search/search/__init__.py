"""How plans are chosen: screen, confirm, judge, flip risk, strategies, the trial log, the Pareto front."""
