"""Section of a declaration: a cluster that reads what the mirror has published."""

from typing import Literal

from pydantic import Field, SecretStr

from rhei_pipeline.settings.section import Section


class ComputeSettings(Section):
    """An engine on other machines, which answers heavy queries from the mirror's Delta tables."""

    kind: Literal["sail", "spark"] = Field(
        description="Which engine it is. Both are asked by Spark Connect, in Spark's SQL."
    )
    endpoint: str = Field(
        pattern=r"^sc://[^/;@]+:\d+$", description="Its address, such as sc://cluster:50051."
    )
    token: SecretStr | None = Field(
        None, description="Proves who asks; the endpoint is then reached by TLS."
    )
    tls: bool = Field(default=False, description="Reach the endpoint by TLS.")
    connect_seconds: float = Field(5.0, gt=0, description="How long a connection may take.")
    min_rows: int | None = Field(
        50_000_000,
        gt=0,
        description="From how many stored rows of its tables on 'auto' has the cluster answer a"
        " query that the mirror would answer; null: never. For kind sail alone.",
    )
