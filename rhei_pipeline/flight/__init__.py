"""Arrow Flight SQL: the door for ADBC, JDBC and everything that speaks them."""
