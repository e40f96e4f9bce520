"""Arrow Flight SQL, for ADBC, JDBC and everything that speaks them."""
