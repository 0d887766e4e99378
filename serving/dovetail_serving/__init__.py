"""Ray Serve applications: the tail that finishes a request and the ledger that gathers samples."""
