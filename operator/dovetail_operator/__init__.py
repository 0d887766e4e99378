"""The operator: makes a cluster what its HybridDeployments say, and moves their cuts."""
