"""Model in, bundle out: import, graph, cost profile, cut, segments, calibration and proof."""
