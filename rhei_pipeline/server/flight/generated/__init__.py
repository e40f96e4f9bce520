"""What protobuf's compiler makes of `flight_sql.proto`; nothing here is written by hand."""
