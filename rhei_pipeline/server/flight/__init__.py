"""The Arrow Flight SQL server, for ADBC, JDBC and other clients."""

from rhei_pipeline.errors import needs_extra

with needs_extra("serve", "Flight SQL"):
    import google.protobuf  # noqa: F401  (the messages are its classes)
