"""Studies: training and testing many runs on the engines that exist, and judging them together."""
