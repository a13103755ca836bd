"""The official clients' own test suites, run as they are against our server: `make official SUITES=...`."""
