"""The Arrow Flight SQL server, for ADBC, JDBC and other clients."""
